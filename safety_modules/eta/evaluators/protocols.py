"""Protocols of evaluators: what scores an exchange before the answer, and an answer; each with a unit and a threshold.

Source: ETA (arXiv 2410.06625) section 3.1, its bi-level evaluation. Differs: any callable will do, a score is checked
against its unit, and a failure of an evaluator never counts as a safe score.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from safety_modules.errors import UserError

Messages = Sequence[dict]  # one exchange; see `SafeProcessor`


class EtaError(UserError):
    """A setting of ETA, or what an evaluator returned, cannot be used; the message names value, rule and remedy."""


@dataclass(frozen=True)
class Unit:
    """What a score is measured in, and the range it can have."""

    name: str
    low: float = -math.inf
    high: float = math.inf

    def check(self, what: str, value: object) -> float:
        """The value as a number; one of numpy, or a tensor without dimensions, will do.

        Raises:
            EtaError: it is not a finite number, or out of range: 16.0 is not a cosine.
        """
        item = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
        number = math.nan if isinstance(item, bool) or not isinstance(item, numbers.Real) else float(item)
        if not math.isfinite(number) or not self.low <= number <= self.high:
            bounds = f" from {self.low:g} to {self.high:g}" if math.isfinite(self.low) else ""
            raise EtaError(f"{what} is {value!r}, which is not a {self.name}; give a finite number{bounds}")
        return number


COSINE = Unit("cosine", -1.0, 1.0)
PROBABILITY = Unit("probability", 0.0, 1.0)
REWARD = Unit("reward")


class PreEvaluator(Protocol):
    """Scores exchanges before there is an answer: the higher, the less safe; unsafe from `threshold` up."""

    unit: Unit
    threshold: float

    def __call__(self, exchanges: Sequence[Messages]) -> Sequence[float | None]:
        """One score each, in `unit`; None where there is nothing to score, such as no image."""


class PostEvaluator(Protocol):
    """Scores answers: the higher, the better and safer; unsafe from `threshold` down."""

    unit: Unit
    threshold: float

    def __call__(self, exchanges: Sequence[Messages], answers: Sequence[str]) -> Sequence[float]:
        """One score each, in `unit`."""


class Matcher(Protocol):
    """How well a sentence fits the images of its exchange: the CLIP term of the search."""

    def match(self, exchanges: Sequence[Messages], sentences: Sequence[str]) -> Sequence[float]:
        """One cosine each, of the image that fits best; 0 without an image."""
