"""Targets: measured numbers and the bounds they must keep to -> the rows of a table and two sentences about them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from rich.markup import escape
from rich.table import Table

from safety_modules.errors import UserError
from safety_modules.taxonomy import nearest

Metrics = dict[str, dict[str, float]]  # column -> metric -> number

SIGNS = {"<=": "≤", ">=": "≥"}
NAMED = 4  # missed bounds in the sentence; the rest are counted
SMALL_CHANGE = 0.01  # of a fraction: below, a number "moved"; above, it "fell" or "rose"


class ReportError(UserError):
    """A report holds what a page cannot show; the message states the value, the rule and the remedy."""


@dataclass(frozen=True)
class Bound:
    """What a number must keep to: `<=` or `>=` a value, or another column's number plus the value."""

    comparison: str
    value: float
    versus: str = ""

    def __post_init__(self) -> None:
        if self.comparison not in SIGNS:
            raise ReportError(f"comparison {self.comparison!r} of a bound must be one of: {', '.join(SIGNS)}")


def at_most(value: float, versus: str = "") -> Bound:
    """`<= value`; with `versus`, at most `value` above that column's number."""
    return Bound("<=", value, versus)


def at_least(value: float, versus: str = "") -> Bound:
    """`>= value`; with `versus` and a negative value, at most that far below that column's number."""
    return Bound(">=", value, versus)


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
        headline: True names it in the first sentence.
    """

    key: str
    label: str
    better: str
    bounds: dict[str, Bound] = field(default_factory=dict)
    unit: str = "%"
    digits: int = 1
    group: str = ""
    detail: str = ""
    headline: bool = False

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
    value: float | None
    text: str
    n: int | None
    bound: str
    met: bool | None


@dataclass(frozen=True)
class Row:
    """A target and its cells; `n` where all measured cells share it."""

    target: Target
    cells: tuple[Cell, ...]
    n: int | None


def check(targets: list[Target], metrics: Metrics) -> None:
    """Refuse a bound on an unknown column, and a fraction outside 0..1.

    Raises:
        ReportError: with the value, the rule and the remedy.
    """
    columns = list(metrics)
    for target in targets:
        for column in [*target.bounds, *(bound.versus for bound in target.bounds.values() if bound.versus)]:
            if column not in columns:
                raise ReportError(f"a bound of {target.key!r} names the column {column!r}; {nearest(column, columns)}")
        for column in columns:
            value = _number(metrics[column].get(target.key))
            if target.unit == "%" and value is not None and not 0 <= value <= 1:
                raise ReportError(f"{target.key} {value!r} of {column} is a fraction and must be in 0..1")


def rows(targets: list[Target], metrics: Metrics) -> list[Row]:
    """The table: each target's numbers against their bounds."""
    made = []
    for target in targets:
        cells = tuple(_cell(metrics, target, column) for column in metrics)
        sizes = {cell.n for cell in cells if cell.value is not None}
        made.append(Row(target, cells, sizes.pop() if len(sizes) == 1 else None))
    return made


def headline(table: list[Row]) -> list[str]:
    """Two sentences: what changed from the first column to the last, and which bounds are missed."""
    named = [_change(row) for row in table if row.target.headline]
    judged = [(row, cell) for row in table for cell in row.cells if cell.met is not None]
    missed = [f"{_lower(name(row, table))} {_miss(cell)}" for row, cell in judged if not cell.met]
    listed = missed[:NAMED] + ([f"{len(missed) - NAMED} more in the table"] if len(missed) > NAMED else [])
    if not judged:
        verdict = "No bound was set."
    elif not missed:
        verdict = f"All {len(judged)} bounds are met." if len(judged) > 1 else "The one bound is met."
    else:
        verdict = (
            f"{len(missed)} of {len(judged)} bounds {'is' if len(missed) == 1 else 'are'} missed: {'; '.join(listed)}."
        )
    return [*(["; ".join([*named[:1], *map(_lower, named[1:])]) + "."] if named else []), verdict]


def heading(column: str) -> str:
    """A column's name for readers: "stage2" is "Stage 2"."""
    spaced = re.sub(r"(?<=[a-z])(?=\d)|_", " ", column)
    return spaced[:1].upper() + spaced[1:]


def name(row: Row, table: list[Row]) -> str:
    """The label, with its group where another row has the same label."""
    label, group = row.target.label, row.target.group
    alone = sum(other.target.label == label for other in table) == 1
    return label if alone or not group else f"{label} ({_lower(group)})"


def terminal(table: list[Row], title: str) -> Table:
    """The rows as a rich table, with a mark and the bound beside each bounded number."""
    made = Table(title=escape(title), title_justify="left")
    made.add_column("metric")
    made.add_column("n", justify="right")
    for cell in table[0].cells if table else ():
        made.add_column(escape(heading(cell.column)), justify="right")
    for row, after in zip(table, [*table[1:], None]):
        n = f"{row.n:,}" if row.n is not None else ""
        last = after is None or after.target.group != row.target.group
        made.add_row(escape(name(row, table)), n, *(_terminal(cell, row.n) for cell in row.cells), end_section=last)
    return made


def _terminal(cell: Cell, shared: int | None) -> str:
    """A cell in rich markup: the number, its own n, and the mark with the bound."""
    size = f" (n {cell.n:,})" if cell.n is not None and shared is None else ""
    if cell.met is None:
        return escape(cell.text + size)
    style, mark = ("green", "✓") if cell.met else ("bold red", "✗")
    return f"{escape(cell.text + size)} [{style}]{mark} {escape(cell.bound)}[/]"


def _cell(metrics: Metrics, target: Target, column: str) -> Cell:
    """One number against its bound; a number that equals its missed bound when rounded gets more digits."""
    value = _number(metrics[column].get(target.key))
    count = _number(metrics[column].get(f"{target.key}_n"))
    n = None if count is None else int(count)
    bound = target.bounds.get(column)
    text = "–" if value is None else target.text(value)
    if bound is None:
        return Cell(column, value, text, n, "", None)
    base = _number(metrics[bound.versus].get(target.key)) if bound.versus else 0.0
    if base is None:
        return Cell(
            column, value, text, n, f"{SIGNS[bound.comparison]} {_lower(heading(bound.versus))}, not measured", False
        )
    limit = base + bound.value
    if value is None:
        return Cell(column, value, text, n, f"{SIGNS[bound.comparison]} {target.text(limit)}", False)
    met = value <= limit + 1e-9 if bound.comparison == "<=" else value >= limit - 1e-9
    digits = next((d for d in range(target.digits, 9) if met or target.text(value, d) != target.text(limit, d)), 9)
    return Cell(
        column, value, target.text(value, digits), n, f"{SIGNS[bound.comparison]} {target.text(limit, digits)}", met
    )


def _number(value: float | None) -> float | None:
    """None for what is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def _change(row: Row) -> str:
    """How a row's first number became its last."""
    before, after = row.cells[0], row.cells[-1]
    measured = [cell for cell in (before, after) if cell.value is not None]
    if before is after or len(measured) < 2:
        known = f"{measured[0].text} in {_lower(heading(measured[0].column))} only" if measured else "not measured"
        return f"{row.target.label}: {known}"
    worse = (after.value > before.value) == (row.target.better == "low")
    return f"{row.target.label} {_verb(before, after, worse)}"


def _verb(before: Cell, after: Cell, worse: bool) -> str:
    """How one number became another; more than a small change for the worse is called so."""
    if before.text == after.text:
        return f"stayed at {after.text}"
    change = after.value - before.value
    small = abs(change) < SMALL_CHANGE * (1.0 if before.text.endswith("%") else abs(before.value))
    verb = "moved" if small else "fell" if change < 0 else "rose"
    return f"{verb} from {before.text} to {after.text}" + (", which is worse" if worse and not small else "")


def _miss(cell: Cell) -> str:
    """Why a bound is missed."""
    found = "was not measured" if cell.value is None else f"is {cell.text}"
    return f"in {_lower(heading(cell.column))} {found}, bound {cell.bound}"


def _lower(text: str) -> str:
    """Begin in lower case, unless an abbreviation begins the text."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
