"""Safety projector: features of the vision tower -> safety features of the language model's width."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from safety_modules.config import ConfigError, SafetyConfig


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of the whole grid."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        mean = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * self.expand(functional.silu(self.reduce(mean))).sigmoid()


class RegBlock(nn.Module):
    """RegNet's residual block: 1x1, depth-wise 3x3, squeeze-excite, 1x1.

    Source: Honeybee (Cha et al., CVPR 2024) section 4.1, with LayerNorm over channels and SiLU.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, channels, 1, bias=False),
            ChannelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            ChannelNorm(channels),
            nn.SiLU(),
            SqueezeExcite(channels, max(1, inputs // 4)),
            nn.Conv2d(channels, channels, 1, bias=False),
            ChannelNorm(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, bias=False), ChannelNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, channels, H, W)."""
        return functional.silu(self.branch(x) + self.shortcut(x))


class CAbstractor(nn.Module):
    """Convolutional projector: blocks, average pooling to the output grid, blocks, two linear layers.

    Source: PSA-VLM supplement A.2, after Honeybee's C-Abstractor. Differs: the grid follows the vision tower (the
    release hard-codes 24 x 24) and the hidden width is free.
    """

    def __init__(self, vision_width: int, language_width: int, width: int, depth: int, grid: int | None) -> None:
        super().__init__()
        self.grid = grid
        self.before = nn.Sequential(*(RegBlock(vision_width if i == 0 else width, width) for i in range(depth)))
        self.after = nn.Sequential(*(RegBlock(width, width) for _ in range(depth)))
        layers = nn.Linear(width, language_width), nn.SiLU(), nn.Linear(language_width, language_width)
        self.readout = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Project.

        Args:
            features: (N, P, V), P a square number: the vision tower's patch grid, row by row.

        Returns:
            (N, G * G, D), G the output grid's side (the input's where `grid` is None).

        Raises:
            ConfigError: P is not a square.
        """
        count, patches, width = features.shape
        side = math.isqrt(patches)
        if side * side != patches:
            raise ConfigError(
                f"c_abstractor got {patches} patches, which is not a square grid; drop the CLS feature "
                "(vision_feature_select_strategy 'default') or use projector 'mlp'"
            )
        # (N, V, S, S) in channels-last layout, as the features come: convolutions and norms then copy nothing
        x = features.reshape(count, side, side, width).permute(0, 3, 1, 2)
        x = functional.adaptive_avg_pool2d(self.before(x), self.grid or side)  # (N, C, G, G)
        return self.readout(self.after(x).flatten(2).transpose(1, 2))  # (N, G * G, D)


class MLP(nn.Module):
    """Two linear layers per patch: the shape of LLaVA-1.5's projector, for comparison with the C-Abstractor."""

    def __init__(self, vision_width: int, language_width: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(vision_width, width), nn.SiLU(), nn.Linear(width, language_width))

    def forward(self, features: Tensor) -> Tensor:
        """(N, P, V) -> (N, P, D), any P."""
        return self.layers(features)


def build_projector(config: SafetyConfig, vision_width: int, language_width: int) -> nn.Module:
    """The projector that `config` names, (N, P, V) -> (N, P', D)."""
    width = config.projector_width
    if config.projector == "mlp":
        return MLP(vision_width, language_width, width)
    return CAbstractor(vision_width, language_width, width, config.projector_depth, config.projector_grid)
