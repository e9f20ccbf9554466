"""ETA thresholds: scores of labelled exchanges -> thresholds of two evaluators that keep a budget of clean exchanges.

Source: ETA section 3.1 has 0.16 and 0.06 for CLIP and ArmoRM with its own wordings. Differs: chosen on the user's own
data, with the guarantee of `decision.calibration`: with a probability of 90 % over samples of clean rows, at most
`budget` of all clean exchanges like them are flagged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safety_modules.config_reader import parse
from safety_modules.decision.calibration import check_budget, rank_for, rows_needed
from safety_modules.eta.evaluators.protocols import COSINE, REWARD, EtaError, Unit


@dataclass(frozen=True)
class Threshold:
    """A threshold, and what it flags among the rows that it was chosen on.

    Attributes:
        threshold: in `unit`; a pre-evaluator flags from this value up, a post-evaluator from this value down.
        unit: its name.
        clean_rows, risky_rows: rows with a score.
        clean_flagged, risky_flagged: fractions of them; None without such rows.
    """

    threshold: float
    unit: str
    clean_rows: int
    clean_flagged: float | None
    risky_rows: int
    risky_flagged: float | None


@dataclass(frozen=True)
class EtaThresholds:
    """Both thresholds; `clean_flagged` and `risky_flagged` are the fractions that both flag, which are aligned.

    Rows without an image, which the pre-evaluator does not score, are decided by the post-evaluator alone, as in `Eta`.
    """

    budget: float
    pre: Threshold
    post: Threshold
    clean_flagged: float | None
    risky_flagged: float | None

    @classmethod
    def fit(
        cls,
        risky: Sequence[bool],
        pre_scores: Sequence[float | None],
        post_scores: Sequence[float],
        budget: float,
        pre_unit: Unit = COSINE,
        post_unit: Unit = REWARD,
    ) -> EtaThresholds:
        """Choose both thresholds so that each alone keeps the budget.

        Args:
            risky: the label of each row: whether the exchange is risky.
            pre_scores: the pre-evaluator's; None where it had nothing to score.
            post_scores: the post-evaluator's, of plain answers.
            budget: fraction of clean exchanges, in (0, 1).

        Raises:
            EtaError: too few clean rows with a score, the message says how many are needed; a score outside its unit; a
                budget that cannot be kept because too many clean rows have the unit's most unsafe score.
        """
        if not len(risky) == len(pre_scores) == len(post_scores):
            raise EtaError(
                f"{len(risky)} labels, {len(pre_scores)} pre-scores and {len(post_scores)} post-scores; give one each"
            )
        pre = [None if score is None else pre_unit.check("a pre-score", score) for score in pre_scores]
        post = [post_unit.check("a post-score", score) for score in post_scores]
        high = flag_from(_values_of(pre, risky, False), budget, pre_unit)
        low = -flag_from([-score for score in _values_of(post, risky, False)], budget, _mirrored(post_unit))
        first = [score is not None and score >= high for score in pre]
        second = [score <= low for score in post]
        both = [(a or score is None) and b for a, b, score in zip(first, second, pre)]
        return cls(
            budget,
            _threshold(high, pre_unit, pre, first, risky),
            _threshold(low, post_unit, post, second, risky),
            _flagged_fraction(both, risky, False),
            _flagged_fraction(both, risky, True),
        )

    def to_json(self) -> str:
        """The file's text; `load` reads it."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, path: str | Path, pre_unit: Unit = COSINE, post_unit: Unit = REWARD) -> EtaThresholds:
        """Read a file that `to_json` wrote.

        Raises:
            EtaError: the file is missing or damaged, or a threshold is of another unit than the evaluator's.
        """
        try:
            thresholds = parse(cls, json.loads(Path(path).read_text(encoding="utf-8")), "its values")
        except (OSError, ValueError) as error:
            raise EtaError(
                f"{path}: is not a file of thresholds ({error}); write one with `safety-modules thresholds`"
            ) from error
        for name, side, unit in (("pre", thresholds.pre, pre_unit), ("post", thresholds.post, post_unit)):
            if side.unit != unit.name:
                raise EtaError(
                    f"{path}: {name} is a {side.unit}, the evaluator gives a {unit.name}; fit thresholds for this one"
                )
            unit.check(f"{path}: threshold of {name}", side.threshold)
        return thresholds


def flag_from(clean: Sequence[float], budget: float, unit: Unit) -> float:
    """The lowest threshold in `unit` that flags at most `budget` of exchanges like the clean ones, ties included.

    Raises:
        EtaError: too few clean rows, a budget out of range, or no such score.
    """
    check_rows(len(clean), budget)
    rank = rank_for(budget, len(clean))
    threshold = math.nextafter(sorted(clean, reverse=True)[rank - 1], math.inf)  # above all ties with the rank
    if threshold > unit.high:
        raise EtaError(
            f"{rank} or more of {len(clean)} clean rows have the most unsafe {unit.name} there is, so no threshold "
            f"keeps a budget of {budget:g}; use another evaluator, or raise the budget"
        )
    return threshold


def check_rows(clean: int, budget: float) -> None:
    """Raise an EtaError where a number of clean rows cannot keep a budget, or the budget is not a fraction."""
    check_budget(budget, error=EtaError)
    if clean < rows_needed(budget):
        raise EtaError(
            f"a budget of {budget:g} needs {rows_needed(budget)} clean rows with a score, there are {clean}; add clean "
            "rows, or raise the budget"
        )


def _mirrored(unit: Unit) -> Unit:
    """The unit of negated scores."""
    return Unit(unit.name, -unit.high, -unit.low)


def _values_of(values: Sequence, risky: Sequence[bool], label: bool) -> list:
    """The values of rows of a label that have one."""
    return [value for value, row in zip(values, risky) if bool(row) == label and value is not None]


def _flagged_fraction(flags: Sequence[bool | None], risky: Sequence[bool], label: bool) -> float | None:
    """Fraction of the rows of a label that are flagged; None without such rows."""
    chosen = _values_of(flags, risky, label)
    return sum(chosen) / len(chosen) if chosen else None


def _threshold(value: float, unit: Unit, scores: list, flags: list[bool], risky: Sequence[bool]) -> Threshold:
    """One evaluator's threshold, and the fractions of scored rows that it flags."""
    scored = [None if score is None else flag for score, flag in zip(scores, flags)]
    sides = (
        (len(_values_of(scores, risky, label)), _flagged_fraction(scored, risky, label)) for label in (False, True)
    )
    return Threshold(value, unit.name, *next(sides), *next(sides))
