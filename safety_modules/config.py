"""SafetyConfig: everything about the safety modules that is saved with their weights."""

from __future__ import annotations

from dataclasses import dataclass

from safety_modules.errors import UserError, nearest

PROJECTORS = ("c_abstractor", "mlp")
QUERIES = ("joint", "image", "paper")
LOWEST = {"head_tokens": 0, "llm_tokens": 0, "projector_width": 1, "projector_depth": 1, "attention_heads": 1}


class ConfigError(UserError):
    """A configuration value breaks a rule; the message states the value, the rule and the remedy."""


@dataclass(frozen=True)
class SafetyConfig:
    """Shape of the safety modules. Widths and the patch grid are not here: they come from the base model.

    Attributes:
        head_tokens: learnable tokens that the head reads beside the safety features (s1), from 0. PSA-VLM: 64.
        llm_tokens: learnable tokens that the language model reads before each image (s2), from 0. 8; PSA-VLM has
            64, with which a step costs 6.5 % more than plain LLaVA's, with 8 it is 1.5 %; no benefit of more was
            measurable (docs/ablations.md).
        projector: "c_abstractor" (PSA-VLM supplement A.2, after Honeybee) or "mlp".
        projector_width: hidden channels of the projector. 1024; the release's 1088 is 1024 + 64 by accident.
        projector_depth: residual blocks before and again after pooling; c_abstractor only. 3.
        projector_grid: side of the square grid of safety features, or None for the tower's own. c_abstractor only.
        query: what the head asks with; see `head.SafetyHead`.
        attention_heads: heads of the head's cross-attention; must divide the language width. 8.
    """

    head_tokens: int = 64
    llm_tokens: int = 8
    projector: str = "c_abstractor"
    projector_width: int = 1024
    projector_depth: int = 3
    projector_grid: int | None = None
    query: str = "joint"
    attention_heads: int = 8

    def __post_init__(self) -> None:
        for name, value, names in (("projector", self.projector, PROJECTORS), ("query", self.query, QUERIES)):
            if value not in names:
                raise ConfigError(f"safety.{name}: unknown value {value!r}; {nearest(value, names)}")
        for name, low in LOWEST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"safety.{name}: {value!r} must be a whole number from {low}")
        if self.projector_grid is not None and (not isinstance(self.projector_grid, int) or self.projector_grid < 1):
            raise ConfigError(f"safety.projector_grid: {self.projector_grid!r} must be a whole number from 1, or null")
        if self.query == "paper" and self.head_tokens == 0 and self.llm_tokens == 0:
            raise ConfigError("safety.query: 'paper' needs safety tokens, there are none; set head_tokens above 0")
