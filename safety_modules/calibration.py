"""Calibration: the head's logits -> probabilities."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from safety_modules.assessment import Assessment
from safety_modules.taxonomy import Taxonomy


@dataclass(frozen=True)
class Calibration:
    """One temperature for each of the head's two outputs; 1.0 leaves the logits as they are."""

    type_temperature: float = 1.0
    level_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"calibration {name}: {value!r} must be a number above 0")

    def assessments(self, type_logits: Tensor, level_logits: Tensor, taxonomy: Taxonomy) -> list[Assessment]:
        """Probabilities of each row.

        Args:
            type_logits: (B, types). level_logits: (B, levels).
        """
        types = torch.softmax(type_logits.float() / self.type_temperature, dim=-1).tolist()
        levels = torch.softmax(level_logits.float() / self.level_temperature, dim=-1).tolist()
        return [
            Assessment(dict(zip(taxonomy.type_names, type_row)), tuple(level_row)) for type_row, level_row in zip(types, levels)
        ]
