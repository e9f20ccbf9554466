"""BACKBONES: one row per family of base models that the safety modules can be attached to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches


def _one_tile(config: PretrainedConfig, count: int, image_sizes: Tensor | None) -> list[int]:
    return [1] * count


def _next_tiles(config: PretrainedConfig, count: int, image_sizes: Tensor | None) -> list[int]:
    side = config.vision_config.image_size
    sizes = [] if image_sizes is None else image_sizes  # a batch without images has none
    return [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in sizes]


def _project(base: PreTrainedModel, features: Tensor, image_sizes: Tensor | None) -> Tensor:
    return base.model.multi_modal_projector(features).flatten(0, 1)


def _project_next(base: PreTrainedModel, features: Tensor, image_sizes: Tensor | None) -> Tensor:
    parts = base.model.multi_modal_projector(features).split(_next_tiles(base.config, len(image_sizes), image_sizes))
    packed = base.model.pack_image_features(
        parts,
        image_sizes,
        vision_feature_select_strategy=base.config.vision_feature_select_strategy,
        image_newline=base.model.image_newline,
    )
    return torch.cat(list(packed[0]))


@dataclass(frozen=True)
class Backbone:
    """What differs between families.

    Attributes:
        model_type: `config.model_type` of transformers.
        projector: path of the base's own projector; its input are the features that the safety projector reads.
        tiles: (config, number of images, image_sizes (n, 2) or None) -> images that the tower sees for each image.
        project: (base, features (N, P, V), image_sizes) -> what the language model reads of the images, (M, D).
    """

    model_type: str
    projector: str
    tiles: Callable[[PretrainedConfig, int, Tensor | None], list[int]]
    project: Callable[[PreTrainedModel, Tensor, Tensor | None], Tensor]

    def blank(self, config: PretrainedConfig, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """pixel_values and image_sizes of one image without anything on it."""
        side = config.vision_config.image_size
        if self.model_type == "llava":
            return torch.zeros(1, 3, side, side, device=device), None
        size = torch.tensor([[side, side]], device=device)
        return torch.zeros(1, self.tiles(config, 1, size)[0], 3, side, side, device=device), size

    @staticmethod
    def patches(config: PretrainedConfig) -> int:
        """P: features of one image at the projector's input, without a CLS feature."""
        return (config.vision_config.image_size // config.vision_config.patch_size) ** 2

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
        Backbone("llava", "model.multi_modal_projector", _one_tile, _project),
        Backbone("llava_next", "model.multi_modal_projector", _next_tiles, _project_next),
    )
}
