"""Targets: measured numbers and their bounds -> the rows of a table."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from safety_modules.errors import UserError, nearest

Metrics = dict[str, dict[str, float]]  # column -> metric -> number


class ReportError(UserError):
    """A report holds what a page cannot show; the message states the value, the rule and the remedy."""


@dataclass(frozen=True)
class Bound:
    """What a number must satisfy: "≤" or "≥" a value, or another column's number plus the value."""

    sign: Literal["≤", "≥"]
    value: float
    versus: str = ""


def at_most(value: float, versus: str = "") -> Bound:
    """`<= value`; with `versus`, at most `value` above that column's number."""
    return Bound("≤", value, versus)


def at_least(value: float, versus: str = "") -> Bound:
    """`>= value`; with `versus` and a negative value, at most that far below that column's number."""
    return Bound("≥", value, versus)


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        key: of the number in each column's metrics; its sample size is under `{key}_n`.
        label: what a reader calls it ("Unsafe answers").
        better: "low" or "high".
        bounds: column -> Bound. A bound on a number that was not measured is missed.
        unit: "%" for a fraction in [0, 1]; else written after the number as it is.
        digits: after the decimal point.
        group: heading above the row and those that follow with the same group.
        detail: one line on how it is measured and who judges.
    """

    key: str
    label: str
    better: str
    bounds: dict[str, Bound] = field(default_factory=dict)
    unit: str = "%"
    digits: int = 1
    group: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("low", "high"):
            raise ReportError(f"better {self.better!r} of {self.key!r} must be 'low' or 'high'")

    def text(self, value: float, digits: int | None = None) -> str:
        """The number with its unit."""
        digits = self.digits if digits is None else digits
        return f"{value * 100:.{digits}f} %" if self.unit == "%" else f"{value:,.{digits}f} {self.unit}".rstrip()


@dataclass(frozen=True)
class Cell:
    """A number in the table. `met` is None where no bound is set; `text` is "–" where nothing was measured."""

    column: str
    text: str
    n: int | None
    bound: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class MetricRow:
    """A target and its cells; `name` is its label, with the group where another row has the same label."""

    target: Target
    name: str
    cells: tuple[Cell, ...]

    @property
    def n(self) -> int | None:
        """The sample size that all measured cells share, if they do."""
        sizes = {cell.n for cell in self.cells if cell.text != "–"}
        return sizes.pop() if len(sizes) == 1 else None


def check(targets: list[Target], metrics: Metrics) -> None:
    """Check that every bound names a column, and that fractions lie in [0, 1].

    Raises:
        ReportError: with the value, the rule and the remedy.
    """
    columns = list(metrics)
    for target in targets:
        for column in [*target.bounds, *(bound.versus for bound in target.bounds.values() if bound.versus)]:
            if column not in columns:
                raise ReportError(f"a bound of {target.key!r} names the column {column!r}; {nearest(column, columns)}")
        for column in columns:
            value = _finite(metrics[column].get(target.key))
            if target.unit == "%" and value is not None and not 0 <= value <= 1:
                raise ReportError(f"{target.key} {value!r} of {column} is a fraction and must be in 0..1")


def rows(targets: list[Target], metrics: Metrics) -> list[MetricRow]:
    """The table: each target's numbers in all columns, with their bounds."""
    labels = Counter(target.label for target in targets)
    table = []
    for target in targets:
        name = f"{target.label} ({target.group})" if labels[target.label] > 1 and target.group else target.label
        table.append(MetricRow(target, name, tuple(_cell(metrics, target, column) for column in metrics)))
    return table


def heading(column: str) -> str:
    """A column's name for readers: "stage2" is "Stage 2"."""
    spaced = re.sub(r"(?<=[a-z])(?=\d)|_", " ", column)
    return spaced[:1].upper() + spaced[1:]


def _cell(metrics: Metrics, target: Target, column: str) -> Cell:
    """One number and its bound; a number that equals its missed bound when rounded gets more digits."""
    value = _finite(metrics[column].get(target.key))
    count = _finite(metrics[column].get(f"{target.key}_n"))
    n = None if count is None else int(count)
    bound = target.bounds.get(column)
    text = "–" if value is None else target.text(value)
    if bound is None:
        return Cell(column, text, n)
    base = _finite(metrics[bound.versus].get(target.key)) if bound.versus else 0.0
    if base is None:
        return Cell(column, text, n, f"{bound.sign} {heading(bound.versus)}, not measured", False)
    limit = base + bound.value
    if value is None:
        return Cell(column, text, n, f"{bound.sign} {target.text(limit)}", False)
    met = value <= limit + 1e-9 if bound.sign == "≤" else value >= limit - 1e-9
    digits = next((d for d in range(target.digits, 9) if met or target.text(value, d) != target.text(limit, d)), 9)
    return Cell(column, target.text(value, digits), n, f"{bound.sign} {target.text(limit, digits)}", met)


def _finite(value: float | None) -> float | None:
    """None for what is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None
