"""Report: the numbers, curves and examples of a run -> one self-contained HTML page, and a terminal table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from safety_modules.decision.policy_rule import ACTIONS
from safety_modules.errors import nearest
from safety_modules.evaluation.metrics import Bin
from safety_modules.files import write_text
from safety_modules.prompt.images import data_uri, load_image
from safety_modules.reporting import charts, targets
from safety_modules.reporting.targets import Cell, ReportError, Target
from safety_modules.reporting.templates import environment
from safety_modules.taxonomy import CLEAN

VERDICTS = {"safe": True, "unsafe": False, "correct": True, "wrong": False, "over-refusal": False}  # is it good?
SMALL, LARGE = 160, 448  # side in pixels: smaller images are enlarged pixel by pixel, larger ones are reduced


@dataclass(frozen=True)
class Exhibit:
    """One example of the page.

    Attributes:
        image: an image file, or None for a question without one.
        risk_type: the label; `risk_level` counts from 0, none.
        answers: column -> answer; `verdicts`: column -> one of VERDICTS.
        types: the head's probability of each type; `levels`: of each level. Empty where there is no head.
        action: one of the policy's ACTIONS.
        note: what is special ("look-alike", "unseen background").
    """

    image: Path | None
    question: str
    risk_type: str
    risk_level: int
    answers: dict[str, str]
    types: dict[str, float]
    levels: tuple[float, ...]
    action: str
    note: str = ""
    verdicts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = [("action", self.action, ACTIONS), *(("verdict", v, VERDICTS) for v in self.verdicts.values())]
        for name, value, valid in values:
            if value not in valid:
                raise ReportError(f"{name} {value!r}: not one of the report's; {nearest(value, list(valid))}")

    @property
    def risky(self) -> bool:
        """Whether the label is not clean; its image is then covered."""
        return self.risk_type != CLEAN or self.risk_level > 0

    @property
    def missed(self) -> bool:
        """Whether the last column's answer has a bad verdict."""
        last = list(self.answers)[-1:]
        return not all(VERDICTS[self.verdicts[column]] for column in last if column in self.verdicts)


@dataclass(frozen=True)
class Confusion:
    """counts[label][prediction]: rows of the labelled type by the predicted type, both in the order of `names`."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        size = len(self.names)
        if [len(row) for row in self.counts] != [size] * size:
            raise ReportError(f"confusion counts must be {size} rows of {size}, one for each name")


@dataclass(frozen=True)
class Report:
    """Everything on the page. Columns are the keys of `metrics`, the state before training first, the final one last.

    Attributes:
        facts: what was run: model, data, versions, seconds.
        metrics: column -> metric -> number; fractions in [0, 1], the sample size of `name` under `name_n`.
        curves: "stage/term" -> (step, value) pairs; "stage/eval_term" is measured on the validation split.
        confusion: of the head, or None.
        level_names: of the risk levels, from none.
        reliability: title of an output -> its bins.
    """

    title: str
    facts: dict[str, str]
    metrics: dict[str, dict[str, float]]
    targets: list[Target]
    curves: dict[str, charts.Points] = field(default_factory=dict)
    confusion: Confusion | None = None
    exhibits: list[Exhibit] = field(default_factory=list)
    level_names: tuple[str, ...] = ()
    reliability: Mapping[str, Sequence[Bin]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        targets.check(self.targets, self.metrics)
        count = len(self.level_names)
        for exhibit in self.exhibits:
            if not 0 <= exhibit.risk_level < count or len(exhibit.levels) not in (0, count):
                raise ReportError(
                    f"an exhibit has risk_level {exhibit.risk_level} and {len(exhibit.levels)} level probabilities; "
                    f"the report names {count} levels"
                )


def render(report: Report) -> str:
    """The page. Everything that comes from data is escaped; images, charts and styles are inside.

    Raises:
        ImageError: an image of an exhibit cannot be read.
    """
    template = environment(heading=targets.heading).get_template("report.html.jinja")
    rows = targets.rows(report.targets, report.metrics)
    names = dict.fromkeys(exhibit.risk_type for exhibit in report.exhibits)
    ordered = [name for name in report.exhibits[0].types if name in names] if report.exhibits else []
    confusion = report.confusion
    return template.render(
        report=report,
        rows=rows,
        bounded=[(row, cell) for row in rows for cell in row.cells if cell.met is not None],
        last_column=list(report.metrics)[-1] if report.metrics else "",
        curves=charts.curve_charts(report.curves),
        reliability=[charts.reliability_chart(title, bins) for title, bins in report.reliability.items()],
        confusion=charts.confusion_chart(confusion.names, confusion.counts) if confusion else None,
        images=[_image(exhibit.image) if exhibit.image else None for exhibit in report.exhibits],
        filters=list(dict.fromkeys([*ordered, *names])),
        verdicts=VERDICTS,
    )


def write(report: Report, path: str | Path) -> None:
    """Render to a file, whole or not at all; missing folders are created."""
    write_text(path, render(report))


def table(report: Report) -> Table:
    """The numbers as a table for the terminal, with a mark and the bound beside each bounded number."""
    rows = targets.rows(report.targets, report.metrics)
    columns = [escape(targets.heading(column)) for column in report.metrics]
    grid = Table("metric", title=escape(report.title), title_justify="left")
    for column in ("n", *columns):
        grid.add_column(column, justify="right")
    for row, following in zip(rows, [*rows[1:], None]):
        n = "" if row.n is None else f"{row.n:,}"
        last = following is None or following.target.group != row.target.group
        grid.add_row(escape(row.name), n, *(_markup(cell, row.n is None) for cell in row.cells), end_section=last)
    return grid


def _image(path: Path) -> tuple[str, bool]:
    """An image file as a data URI, and whether it is small."""
    image = load_image(path)
    return data_uri(image, LARGE, "PNG"), max(image.size) < SMALL


def _markup(cell: Cell, with_n: bool) -> str:
    """A cell in rich markup: the number, its n unless the row has it, and the mark with the bound."""
    text = escape(f"{cell.text} (n {cell.n:,})" if with_n and cell.n is not None else cell.text)
    if cell.met is None:
        return text
    style, mark = ("green", "✓") if cell.met else ("bold red", "✗")
    return f"{text} [{style}]{mark} {escape(cell.bound)}[/]"
