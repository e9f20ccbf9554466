"""Assessment: the probabilities of one exchange."""

from __future__ import annotations

from dataclasses import dataclass

from safety_modules.taxonomy import CLEAN


@dataclass(frozen=True)
class Assessment:
    """The head's probabilities for one exchange.

    Attributes:
        types: probability of each risk type, clean included; they sum to 1.
        levels: probability of each risk level; they sum to 1.
    """

    types: dict[str, float]
    levels: tuple[float, ...]

    def score(self, risk_type: str) -> float:
        """Probability of a type against clean alone, in [0, 1].

        The other types have no effect on it, so switching one type off leaves the scores of all others as they are.
        """
        total = self.types[risk_type] + self.types[CLEAN]
        return self.types[risk_type] / total if total > 0 else 0.0

    @property
    def risk(self) -> float:
        """Probability that the exchange is not clean."""
        return 1.0 - self.types[CLEAN]

    @property
    def risk_type(self) -> str:
        """The most probable type."""
        return max(self.types, key=self.types.__getitem__)

    @property
    def risk_level(self) -> int:
        """The most probable level that the type admits: 0 for clean, else from 1."""
        return 0 if self.risk_type == CLEAN else self.degree

    @property
    def degree(self) -> int:
        """The most probable level from 1, given that there is a risk."""
        return max(range(1, len(self.levels)), key=self.levels.__getitem__)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {
            "types": self.types,
            "levels": list(self.levels),
            "risk_type": self.risk_type,
            "risk_level": self.risk_level,
        }
