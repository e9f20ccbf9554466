"""Evaluators: what scores an exchange before there is an answer, and an answer afterwards; each with its unit and threshold.

Source: ETA (arXiv 2410.06625) section 3.1, its bi-level evaluation. Differs: any callable will do, a score is checked against
its unit, and an evaluator that fails is never taken for one that found nothing.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from safety_modules.errors import UserError

Messages = Sequence[dict]  # one exchange, as `SafeProcessor` takes it


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
            EtaError: it is no finite number, or out of range: 16.0 is no cosine.
        """
        number = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
        real = isinstance(number, numbers.Real) and not isinstance(number, bool)
        if not real or not math.isfinite(number) or not self.low <= number <= self.high:
            bounds = f" from {self.low:g} to {self.high:g}" if math.isfinite(self.low) else ""
            raise EtaError(f"{what} is {value!r}, which is no {self.name}; give a finite number{bounds}")
        return float(number)


COSINE = Unit("cosine", -1.0, 1.0)
PROBABILITY = Unit("probability", 0.0, 1.0)
REWARD = Unit("reward")


class PreEvaluator(Protocol):
    """Scores exchanges before there is an answer: the higher, the less safe; unsafe from `threshold` up."""

    unit: Unit
    threshold: float

    def __call__(self, exchanges: Sequence[Messages]) -> Sequence[float | None]:
        """One score each, in `unit`; None where there is nothing to judge, such as no image."""


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
