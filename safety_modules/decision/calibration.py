"""Calibration: the head's logits -> reliable probabilities, and thresholds that keep a false-positive budget."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from safety_modules.decision.assessment import Assessment
from safety_modules.errors import UserError
from safety_modules.taxonomy import Taxonomy

ANY = "any"  # stands for the highest score of all risky types
CONFIDENCE = 0.9
DENSE = 100  # ranks stored one by one; above, they grow by one in a hundred


class CalibrationError(UserError):
    """A calibration cannot be fitted or used; the message states the value, the rule and the remedy."""


@dataclass(frozen=True)
class Calibration:
    """One temperature for each of the head's two outputs, and the highest scores of clean rows.

    Source: temperature scaling (Guo et al., 2017); split conformal prediction for the thresholds, with the
    guarantee that is conditional on the calibration rows (Vovk, 2012, proposition 2a). PSA-VLM has neither.

    Attributes:
        type_temperature, level_temperature: divisors of the logits, above 0; 1.0 leaves them as they are.
        clean_rows: n, the number of clean rows that the scores come from.
        ranks: which of the n scores are stored, from 1, the highest; ascending.
        scores: risk type, or ANY -> score (see `Assessment.score`) of a clean row at each rank.
    """

    type_temperature: float = 1.0
    level_temperature: float = 1.0
    clean_rows: int = 0
    ranks: tuple[int, ...] = ()
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("type_temperature", "level_temperature"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise CalibrationError(f"calibration {name}: {value!r} must be a number above 0")
        for name, scores in self.scores.items():
            if len(scores) != len(self.ranks) or list(scores) != sorted(scores, reverse=True):
                raise CalibrationError(f"calibration scores of {name!r}: must be {len(self.ranks)} numbers, descending")

    @classmethod
    def fit(
        cls, type_logits: Tensor, level_logits: Tensor, risk_type: Tensor, risk_level: Tensor, taxonomy: Taxonomy
    ) -> Calibration:
        """Calibrate on labelled rows that the head was not trained on.

        Args:
            type_logits: (B, types). level_logits: (B, levels).
            risk_type, risk_level: (B,), class indices.

        Raises:
            CalibrationError: no row, or no clean row.
        """
        clean = risk_type == taxonomy.clean_index
        if not clean.any():
            raise CalibrationError(
                f"calibration has {len(risk_type)} rows and no clean one; thresholds need clean rows, add some"
            )
        temperatures = fit_temperature(type_logits, risk_type), fit_temperature(level_logits, risk_level)
        clean_rows = cls(*temperatures).assessments(type_logits[clean], level_logits[clean], taxonomy)
        ranks = stored_ranks(len(clean_rows))
        columns = {name: [row.score(name) for row in clean_rows] for name in taxonomy.risky_names}
        columns[ANY] = [max(scores) for scores in zip(*columns.values())]
        descending = {name: sorted(scores, reverse=True) for name, scores in columns.items()}
        scores = {name: tuple(column[rank - 1] for rank in ranks) for name, column in descending.items()}
        return cls(*temperatures, len(clean_rows), tuple(ranks), scores)

    def threshold(self, risk_type: str, budget: float) -> float:
        """The lowest score at which a type may count as present, so that at most `budget` of clean exchanges pass.

        The guarantee is split conformal's, for any head and any number of rows: with a probability of CONFIDENCE
        over the draw of the n clean rows, the fraction of all clean exchanges like them that pass is at most the
        budget. What scores above the k-th highest of the n passes; that fraction has a Beta(k, n + 1 - k)
        distribution, or a lower one with ties. The ranks do not depend on the temperature, so fitting it on the
        same rows does not weaken the guarantee.

        Args:
            risk_type: a risky type, or ANY for a threshold of all types at once.
            budget: fraction of clean exchanges, in (0, 1).

        Raises:
            CalibrationError: there are too few clean rows for this budget; the message says how many are needed.
        """
        check_budget(budget)
        if risk_type not in self.scores:
            raise CalibrationError(
                f"the calibration has no scores of {risk_type!r}; run `safety-modules calibrate` on the checkpoint"
            )
        k = rank_for(budget, self.clean_rows)
        if k < 1:
            raise CalibrationError(
                f"a budget of {budget:g} needs {rows_needed(budget)} clean rows, the calibration has "
                f"{self.clean_rows}; calibrate on more clean rows, or raise the budget"
            )
        place = max(i for i, rank in enumerate(self.ranks) if rank <= k)
        return math.nextafter(self.scores[risk_type][place], 2.0)  # the k-th highest clean score itself does not pass

    def assessments(self, type_logits: Tensor, level_logits: Tensor, taxonomy: Taxonomy) -> list[Assessment]:
        """Probabilities of each row.

        Args:
            type_logits: (B, types). level_logits: (B, levels).
        """
        types = torch.softmax(type_logits.double() / self.type_temperature, dim=-1).tolist()
        levels = torch.softmax(level_logits.double() / self.level_temperature, dim=-1).tolist()
        return [
            Assessment(dict(zip(taxonomy.type_names, type_row)), tuple(level_row))
            for type_row, level_row in zip(types, levels)
        ]

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object, taxonomy: Taxonomy) -> Calibration:
        """The inverse of `to_dict`.

        Raises:
            CalibrationError: a key is missing or unknown, or the types are not the taxonomy's.
        """
        names = set(cls.__dataclass_fields__)
        if not isinstance(data, dict) or data.keys() != names:
            raise CalibrationError(
                f"calibration must have the keys {', '.join(sorted(names))}; run `safety-modules calibrate` again"
            )
        if data["scores"] and list(data["scores"]) != [*taxonomy.risky_names, ANY]:
            raise CalibrationError(
                f"calibration is of {', '.join(data['scores'])}, the taxonomy has {', '.join(taxonomy.risky_names)}; "
                "they must be the same: run `safety-modules calibrate` again"
            )
        scores = {name: tuple(row) for name, row in data["scores"].items()}
        return cls(**{**data, "ranks": tuple(data["ranks"]), "scores": scores})


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits under which the labels are most likely, in 0.05 to 20.

    Args:
        logits: (B, C). labels: (B,).
    """
    from scipy.optimize import minimize_scalar  # slow to import, and only fitting needs it

    values = logits.double()
    minimum = minimize_scalar(
        lambda log: functional.cross_entropy(values / math.exp(log), labels).item(),
        bounds=(math.log(0.05), math.log(20.0)),
        method="bounded",
    )
    return math.exp(minimum.x)


def check_budget(budget: object, place: str = "budget", error: type[UserError] = CalibrationError) -> float:
    """A fraction of clean exchanges, in (0, 1); else an error of class `error`."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < 1:
        raise error(f"{place} {budget!r} is a fraction of clean exchanges and must be above 0 and below 1")
    return float(budget)


def rank_for(budget: float, rows: int) -> int:
    """The largest k for which Beta(k, rows + 1 - k) is at most `budget` with a probability of CONFIDENCE, or 0."""
    from scipy.stats import beta  # slow to import

    ranks = np.arange(1, rows + 1)
    return int((beta.cdf(budget, ranks, rows + 1 - ranks) >= CONFIDENCE).sum())  # falls with the rank


def rows_needed(budget: float) -> int:
    """The fewest clean rows that a budget can be kept with."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-budget))


def stored_ranks(rows: int) -> list[int]:
    """Ranks from 1 to `rows`: the first hundred, then ever sparser. A budget between two uses the lower rank."""
    ranks, rank = [], 1
    while rank <= rows:
        ranks.append(rank)
        rank += max(1, rank // DENSE)
    return ranks
