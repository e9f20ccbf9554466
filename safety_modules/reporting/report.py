"""Report: the numbers, curves and examples of a run -> one HTML page that needs nothing else, and a table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from rich.table import Table

from safety_modules.decision.policy_rule import ACTIONS
from safety_modules.evaluation.metrics import Bin
from safety_modules.reporting import charts, targets
from safety_modules.reporting.targets import ReportError, Target
from safety_modules.taxonomy import CLEAN, nearest

VERDICTS = {
    "safe": True,
    "unsafe": False,
    "correct": True,
    "wrong": False,
    "over-refusal": False,
}  # verdict -> is it good?
TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Exhibit:
    """One example of the gallery.

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
        if self.action not in ACTIONS:
            raise ReportError(f"action {self.action!r}; {nearest(self.action, list(ACTIONS))}")
        for verdict in self.verdicts.values():
            if verdict not in VERDICTS:
                raise ReportError(f"verdict {verdict!r}; {nearest(verdict, list(VERDICTS))}")

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
        if any(len(row) != len(self.names) for row in (self.names, *self.counts)) or len(self.counts) != len(
            self.names
        ):
            raise ReportError(
                f"confusion counts must be {len(self.names)} rows of {len(self.names)}, one for each name"
            )


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
    curves: dict[str, charts.Points]
    confusion: Confusion | None
    exhibits: list[Exhibit]
    level_names: tuple[str, ...]
    reliability: dict[str, Sequence[Bin]] = field(default_factory=dict)

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
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["heading"] = targets.heading
    rows = targets.rows(report.targets, report.metrics)
    names = list(dict.fromkeys(exhibit.risk_type for exhibit in report.exhibits))
    order = [name for name in report.exhibits[0].types if name in names] if report.exhibits else []
    marks = [cell.met for row in rows for cell in row.cells if cell.met is not None]
    return env.get_template(TEMPLATE).render(
        report=report,
        rows=rows,
        headline=[sentence.replace(" %", "\u00a0%") for sentence in targets.headline(rows)],
        last_column=list(report.metrics)[-1] if report.metrics else "",
        marks=marks,
        all_met=all(marks),
        panels=charts.panels(report.curves),
        plots=[charts.reliability_plot(title, bins) for title, bins in report.reliability.items()],
        images=[charts.image(exhibit.image) if exhibit.image else None for exhibit in report.exhibits],
        filters=order + [name for name in names if name not in order],
        charts=charts,
        verdicts=VERDICTS,
    )


def write(report: Report, path: Path) -> None:
    """Render to a file, whole or not at all; missing folders are made."""
    path, page = Path(path), render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def table(report: Report) -> Table:
    """The same table for the terminal."""
    return targets.terminal(targets.rows(report.targets, report.metrics), report.title)
