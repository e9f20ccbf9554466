"""Charts: curves -> the geometry of small line charts; images -> data URIs. Pure functions; the template draws."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_modules.evaluation.metrics import Bin, ece
from safety_modules.prompt.images import load_image

Points = list[tuple[int, float]]

WIDTH, HEIGHT = 230, 140  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 22  # margins
MOST_POINTS = 300
SQUARE, MARGIN = 150, 12  # side of a reliability plot, and the space around it
SMALL, LARGE = 160, 448  # pixels: images below are shown pixel by pixel, images above are reduced


@dataclass(frozen=True)
class Line:
    """One line of a chart: an SVG path, its points and what to read off it."""

    name: str
    kind: str  # "training" or "validation"
    path: str
    points: tuple[tuple[float, float, int, str], ...]  # x, y, step, value as text
    summary: str
    averaged: int = 1  # values behind each point
    left_out: int = 0  # values that are not finite


@dataclass(frozen=True)
class Chart:
    """One panel: a term of one stage. Ticks are (position, text)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @property
    def last(self) -> str:
        """The last value of each line."""
        return " · ".join(line.points[-1][3] for line in self.lines)

    @property
    def summary(self) -> str:
        """The chart in words."""
        return ". ".join([self.title, *(f"{line.kind}: {line.summary}" for line in self.lines)])


@dataclass(frozen=True)
class ChartImage:
    """An image for the page; a small one is shown pixel by pixel."""

    uri: str
    small: bool


def panels(curves: dict[str, Points]) -> dict[str, list[Chart]]:
    """Charts by stage. A key is "stage/term"; "eval_term" joins the panel of its training term, or is a fraction of its own.

    A term's panels in all stages share nothing but the layout: each has its own range, written at its axis.
    """
    stages: dict[str, dict[str, dict[str, Points]]] = {}
    for key, points in curves.items():
        stage, _, term = key.rpartition("/")
        name = term.removeprefix("eval_")
        trained = f"{stage}/{name}" in curves
        kind = "validation" if name != term else "training"
        stages.setdefault(stage, {}).setdefault(name if trained else term, {})[kind] = points
    charts = {stage: [chart(term, lines) for term, lines in terms.items()] for stage, terms in stages.items()}
    return {stage: [found for found in made if found] for stage, made in charts.items()}


def chart(term: str, curves: dict[str, Points]) -> Chart | None:
    """The panel of one term, or None where no value is finite.

    Args:
        term: name of the loss term, or "eval_" and the name of a metric.
        curves: kind ("training", "validation") -> (step, value) in order of steps.
    """
    kept = {kind: [point for point in points if math.isfinite(point[1])] for kind, points in curves.items()}
    known = [point for points in kept.values() for point in points]
    if not known:
        return None
    values = [value for _, value in known]
    share = term.startswith("eval_") and min(values) >= 0 and max(values) <= 1
    ticks = [0.0, 0.5, 1.0] if share else nice_ticks(min(0.0, *values), max(values))
    (x0, x1), (y0, y1) = _range(step for step, _ in known), (ticks[0], ticks[-1])

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    def text(value: float) -> str:
        return f"{value * 100:.1f} %" if share else f"{value:.3g}"

    lines = []
    for kind, points in kept.items():
        if not points:
            continue
        size = math.ceil(len(points) / MOST_POINTS)
        spots = tuple((*place(step, value), step, text(value)) for step, value in thin(points, size))
        path = "M" + "L".join(f"{x} {y}" for x, y, _, _ in spots)
        best = (max if share else min)(points, key=lambda point: point[1])
        summary = (
            f"{text(points[0][1])} at step {points[0][0]}, {'highest' if share else 'lowest'} {text(best[1])} at step {best[0]}, "
            f"{text(points[-1][1])} at step {points[-1][0]}"
        )
        name = term.removeprefix("eval_").replace("_", " ") + ("" if share or "loss" in term else " loss")
        lines.append(Line(name, kind, path, spots, summary, size, len(curves[kind]) - len(points)))
    y_ticks = tuple((place(x0, tick)[1], f"{tick * 100:.0f} %" if share else f"{tick:g}") for tick in ticks)
    x_ticks = tuple(
        (place(step, y0)[0], f"{step:,}") for step in dict.fromkeys((x0, x1)) if step in {s for s, _ in known}
    )
    return Chart(lines[0].name, tuple(lines), x_ticks, y_ticks)


@dataclass(frozen=True)
class Spot:
    """One bin of a reliability plot: centre and radius in the plot's units, and its numbers in words."""

    x: float
    y: float
    radius: float
    text: str


@dataclass(frozen=True)
class Plot:
    """Confidence (across) against accuracy (up) of one output; on the diagonal the head is as often right as it is sure."""

    title: str
    spots: tuple[Spot, ...]
    note: str
    summary: str


def reliability_plot(title: str, bins: Sequence[Bin]) -> Plot:
    """The plot of one output's bins; a spot's area grows with the rows in it."""
    most = max((row.n for row in bins), default=1)
    spots = []
    for row in bins:
        x, y = (round(MARGIN + value * SQUARE, 1) for value in (row.confidence, 1 - row.accuracy))
        words = f"confidence {row.confidence * 100:.1f} %, right {row.accuracy * 100:.1f} %, n {row.n:,}"
        spots.append(Spot(x, y, round(2 + 5 * math.sqrt(row.n / most), 1), words))
    note = f"ECE {ece(bins) * 100:.2f} %, n {sum(row.n for row in bins):,}" if bins else "no rows"
    return Plot(title, tuple(spots), note, f"{title}: {note}. " + "; ".join(spot.text for spot in spots))


def thin(points: Points, size: int) -> Points:
    """Means over runs of `size` points, each at the last step of its run."""
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose `low` and `high`."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / 3
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def image(source: Path) -> ChartImage:
    """An image file as a PNG data URI; sides above LARGE are reduced.

    Raises:
        ImageError: the file is missing or is no image.
    """
    image = load_image(source)
    image.thumbnail((LARGE, LARGE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return ChartImage(uri, max(image.size) < SMALL)


def _range(steps: Iterable[int]) -> tuple[int, int]:
    """First and last step, apart even where there is one."""
    ordered = sorted(steps)
    return ordered[0], max(ordered[-1], ordered[0] + 1)
