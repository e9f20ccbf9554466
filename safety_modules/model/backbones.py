"""BACKBONES: the families of base models that the safety modules can be attached to, by `config.model_type`."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches


class Backbone:
    """The LLaVA family, and what differs in others.

    Attributes:
        projector: path of the base's own projector; its inputs are the features that the safety projector reads.
    """

    projector = "model.multi_modal_projector"

    def tiles(self, config: PretrainedConfig, count: int, image_sizes: Tensor | None) -> list[int]:
        """Tiles that the vision tower encodes for each of `count` images. Args: image_sizes: (n, 2), or None."""
        return [1] * count

    def project(self, base: PreTrainedModel, features: Tensor, image_sizes: Tensor | None) -> Tensor:
        """Features (N, P, V) -> image embeddings of the language model, (M, D)."""
        return base.get_submodule(self.projector)(features).flatten(0, 1)

    def blank(self, config: PretrainedConfig, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """pixel_values and image_sizes of one black image."""
        side = config.vision_config.image_size
        return torch.zeros(1, 3, side, side, device=device), None

    @staticmethod
    def patches(config: PretrainedConfig) -> int:
        """P: features of one tile at the projector's input, without a CLS feature."""
        return (config.vision_config.image_size // config.vision_config.patch_size) ** 2

    @staticmethod
    def vision_width(config: PretrainedConfig) -> int:
        """V: width of the features at the projector's input, all selected layers concatenated."""
        layers = config.vision_feature_layer
        return config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))

    @staticmethod
    def language_width(config: PretrainedConfig) -> int:
        """D: width of the language model."""
        return config.text_config.hidden_size


class NextBackbone(Backbone):
    """LLaVA-NeXT: an image is an overview and a grid of tiles, whose size depends on the image's."""

    def tiles(self, config: PretrainedConfig, count: int, image_sizes: Tensor | None) -> list[int]:
        """See `Backbone`."""
        if image_sizes is None:  # a batch without images has none
            return []
        side = config.vision_config.image_size
        return [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in image_sizes]

    def project(self, base: PreTrainedModel, features: Tensor, image_sizes: Tensor | None) -> Tensor:
        """See `Backbone`."""
        if image_sizes is None:
            raise ValueError("LLaVA-NeXT's tiles cannot be put together without the images' sizes; give image_sizes")
        tiles = self.tiles(base.config, len(image_sizes), image_sizes)
        packed, _ = base.model.pack_image_features(
            base.get_submodule(self.projector)(features).split(tiles),
            image_sizes,
            vision_feature_select_strategy=base.config.vision_feature_select_strategy,
            image_newline=base.model.image_newline,
        )
        return torch.cat(list(packed))

    def blank(self, config: PretrainedConfig, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """See `Backbone`."""
        pixels, _ = super().blank(config, device)
        size = torch.tensor([pixels.shape[2:]], device=device)
        return pixels.repeat(self.tiles(config, 1, size)[0], 1, 1, 1).unsqueeze(0), size


BACKBONES = {"llava": Backbone(), "llava_next": NextBackbone()}
