"""BACKBONES: one row per family of base models that the safety modules can be attached to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches


def _one_tile(config: PretrainedConfig, count: int, image_sizes: Tensor | None) -> list[int]:
    return [1] * count


def _next_tiles(config: PretrainedConfig, count: int, image_sizes: Tensor | None) -> list[int]:
    side = config.vision_config.image_size
    sizes = [] if image_sizes is None else image_sizes  # a batch without pictures has none
    return [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in sizes]


@dataclass(frozen=True)
class Backbone:
    """What differs between families.

    Attributes:
        model_type: `config.model_type` of transformers.
        projector: path of the base's own projector; its input are the features that the safety projector reads.
        tiles: (config, number of images, image_sizes (n, 2) or None) -> pictures that the tower sees for each image.
    """

    model_type: str
    projector: str
    tiles: Callable[[PretrainedConfig, int, Tensor | None], list[int]]

    @staticmethod
    def vision_width(config: PretrainedConfig) -> int:
        """V: width of the features at the projector's input, all selected layers together."""
        layers = config.vision_feature_layer
        return config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))

    @staticmethod
    def language_width(config: PretrainedConfig) -> int:
        """D: width of the language model."""
        return config.text_config.hidden_size


BACKBONES = {
    row.model_type: row
    for row in (
        Backbone("llava", "model.multi_modal_projector", _one_tile),
        Backbone("llava_next", "model.multi_modal_projector", _next_tiles),
    )
}
