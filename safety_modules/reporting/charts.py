"""Charts: curves, reliability bins and confusion counts -> inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from safety_modules.evaluation.metrics import Bin, ece

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

Points = list[tuple[int, float]]  # (step, value) in order of steps

# of report.css.jinja, in the light theme
COLOURS = {"accent": "#2a62c4", "second": "#b5530b", "ink": "#1c1c1a", "soft": "#63625d", "line": "#dedcd5"}
STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,
    "text.color": COLOURS["ink"],
    **dict.fromkeys(("axes.edgecolor", "grid.color"), COLOURS["line"]),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), COLOURS["soft"]),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top"), False),
}
LINES = {"training": (COLOURS["accent"], "-"), "validation": (COLOURS["second"], (0, (4, 2)))}  # colour, dashes


@dataclass(frozen=True)
class Chart:
    """A chart for the page.

    Attributes:
        note: beside the title: the last values and how many are not finite, or the calibration error.
        description: the chart in words, in place of the image.
        svg: content of the SVG element. size: width and height of its view box.
    """

    title: str
    note: str
    description: str
    svg: Markup
    size: tuple[float, float]


def curve_charts(curves: dict[str, Points]) -> dict[str, list[Chart]]:
    """Charts by stage; terms without a finite value are left out.

    Args:
        curves: "stage/term" or "stage/eval_term", the latter measured on the validation split. Where a stage has both,
            one chart shows both; an eval_term alone, with values in [0, 1], is drawn as a fraction.
    """
    stages: dict[str, dict[str, dict[str, Points]]] = {}
    for key, points in curves.items():
        stage, _, term = key.rpartition("/")
        name = term.removeprefix("eval_")
        split = "validation" if name != term else "training"
        terms = stages.setdefault(stage, {})
        terms.setdefault(name if f"{stage}/{name}" in curves else term, {})[split] = points
    charts = {stage: [_curve_chart(term, lines) for term, lines in terms.items()] for stage, terms in stages.items()}
    return {stage: [chart for chart in row if chart] for stage, row in charts.items() if any(row)}


def _curve_chart(term: str, curves: dict[str, Points]) -> Chart | None:
    """The chart of one term's curves by split; None where no value is finite."""
    finite = {split: [point for point in points if math.isfinite(point[1])] for split, points in curves.items()}
    lines = {split: points for split, points in finite.items() if points}
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return None
    fraction = term.startswith("eval_") and 0 <= min(values) <= max(values) <= 1
    title = term.removeprefix("eval_").replace("_", " ") + ("" if fraction or "loss" in term else " loss")
    with _drawing(3.2, 2.0) as (figure, axes):
        for split, points in lines.items():
            colour, dashes = LINES[split]
            axes.plot(*zip(*points), color=colour, linestyle=dashes, linewidth=1.4)
            axes.plot(*zip(*points[-1:]), color=colour, marker=".")
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        low, high = min(0.0, *values), max(values)
        axes.set_ylim(low, 1.0 if fraction else high + 0.08 * (high - low) or 1.0)
        if fraction:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    notes, summaries = zip(*(_summary(points, fraction) for points in lines.values()))
    if left_out := sum(map(len, curves.values())) - len(values):
        notes += (f"{left_out} not finite",)
    sentences = [title, *map(": ".join, zip(lines, summaries))]
    return _chart(figure, title, " · ".join(notes), ". ".join(sentences))


def _summary(points: Points, fraction: bool) -> tuple[str, str]:
    """The last value as a text; first, best and last value in words."""
    name, best, text = ("highest", max, "{:.1%}") if fraction else ("lowest", min, "{:.3g}")
    chosen = {"first": points[0], name: best(points, key=lambda point: point[1]), "last": points[-1]}
    words = [f"{label} {text.format(value)} at step {step}" for label, (step, value) in chosen.items()]
    return text.format(points[-1][1]), ", ".join(words)


def reliability_chart(title: str, bins: Sequence[Bin]) -> Chart:
    """Confidence (across) against accuracy (up); a point's area grows with its rows."""
    note = f"ECE {ece(bins):.2%}, n {sum(row.n for row in bins):,}" if bins else "no rows"
    words = [f"confidence {row.confidence:.1%}, accuracy {row.accuracy:.1%}, n {row.n:,}" for row in bins]
    largest = max((row.n for row in bins), default=1)
    with _drawing(3.2, 2.6) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=COLOURS["soft"], linewidth=1, linestyle=(0, (3, 3)))
        points = [(row.confidence, row.accuracy, 4 + 140 * row.n / largest) for row in bins]
        across, up, area = zip(*points) if points else ((), (), ())
        axes.scatter(across, up, area, COLOURS["accent"], alpha=0.55, clip_on=False, zorder=3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
    return _chart(figure, title, note, f"{title}: {note}. " + "; ".join(words))


def confusion_chart(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Chart:
    """A row for each label, a column for each prediction; the cells' colour is the fraction of the row."""
    table = np.array(counts)  # (types, types)
    totals = table.sum(1)
    fractions = table / np.maximum(totals, 1)[:, None]
    labels = [f"{name} (n {total:,})" for name, total in zip(names, totals)]
    right = [f"{label}: {table[i, i]:,} right" for i, label in enumerate(labels)]
    colours = LinearSegmentedColormap.from_list("fraction", [f"{COLOURS['accent']}{alpha}" for alpha in ("00", "99")])
    side, longest = 0.62 * len(names), max(map(len, labels))
    with _drawing(side + 0.09 * longest, side + 0.05 * longest) as (figure, axes):
        axes.pcolormesh(fractions, cmap=colours, vmin=0, vmax=1, edgecolors=COLOURS["line"], linewidth=0.5)
        for (row, column), count in np.ndenumerate(table):
            centred = {"x": column + 0.5, "ha": "center", "weight": "bold" if row == column else "normal"}
            axes.text(y=row + 0.5, s=f"{count:,}", color=COLOURS["ink" if count else "soft"], **centred)
            if count:
                axes.text(y=row + 0.75, s=f"{fractions[row, column]:.1%}", size=7.5, **centred)
        places = np.arange(len(names)) + 0.5
        axes.set_xticks(places, names, rotation=35, ha="left")
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        axes.tick_params(top=True, labeltop=True, labelbottom=False)
        axes.grid(False)
    return _chart(figure, "", "", "Confusion of risk types. " + "; ".join(right))


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of so many inches and its axes, in the page's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _chart(figure: Figure, title: str, note: str, description: str) -> Chart:
    """Save the figure as SVG; its colours become the page's variables, its ids stay unique within the page."""
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": description}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # missing in matplotlib's font, which the page does not use
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    (svg,) = re.findall(r"<svg[^>]*>(.*)</svg>", file.getvalue(), re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"|font-family: [^;]*; ', "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    width, height = figure.get_size_inches() * 72
    return Chart(title, note, description, Markup(svg), (float(width), float(height)))
