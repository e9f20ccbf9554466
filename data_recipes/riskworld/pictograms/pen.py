"""Pen: draws pictograms given in unit coordinates (-1..1, y down) as a mask, in several styles."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

Points = list[tuple[float, float]]

INK, HALF, EMPTY = 255, 120, 0


@dataclass(frozen=True)
class Style:
    """How a pictogram is drawn: `fill` of its bodies (or "hatch"), `line` width and a `gap` inside lines, in units."""

    name: str
    fill: int | str
    line: float
    gap: float = 0.0


TRAIN_STYLES = (
    Style("filled", INK, 0.16),
    Style("thin", EMPTY, 0.11),
    Style("thick", EMPTY, 0.19),
    Style("soft", HALF, 0.13),
)
HELD_OUT_STYLES = (Style("double", EMPTY, 0.27, gap=0.10), Style("hatched", "hatch", 0.12))


def ellipse(x: float, y: float, rx: float, ry: float | None = None, start: float = 0, end: float = 360) -> Points:
    """Points along an ellipse around (x, y) from `start` to `end` degrees, clockwise from the right."""
    ry = rx if ry is None else ry
    steps = max(4, int(abs(end - start) / 12))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """The corners of a rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


class Pen:
    """Collects one pictogram as a mask (mode L, 255 is ink).

    Args:
        size: (width, height) of the mask in pixels.
        centre: place of the unit square's origin in pixels.
        scale: pixels per unit along x and y.
        angle: rotation in degrees.
        style: how bodies, lines and details are drawn.
    """

    def __init__(
        self, size: tuple[int, int], centre: tuple[float, float], scale: tuple[float, float], angle: float, style: Style
    ) -> None:
        self.mask = Image.new("L", size, 0)
        self._draw = ImageDraw.Draw(self.mask)
        self._centre, self._scale, self.style = centre, scale, style
        self._cos, self._sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        self._unit = (scale[0] + scale[1]) / 2

    def body(self, points: Points) -> None:
        """A closed part of the outline: filled, empty or hatched as the style says."""
        spots = self._place(points)
        if self.style.fill == "hatch":
            self._hatch(spots)
        else:
            self._draw.polygon(spots, fill=self.style.fill)
        self._line(spots + spots[:2], self.style.line)

    def mark(self, points: Points) -> None:
        """A detail inside a body: a hole in filled styles, ink in the others."""
        spots = self._place(points)
        if self.style.fill == "hatch":
            self._draw.line(spots + spots[:2], fill=0, width=round(0.2 * self._unit), joint="curve")
        self._draw.polygon(spots, fill=self._contrast)

    def scratch(self, points: Points, width: float = 1.0) -> None:
        """A line across a body, in the colour of a mark."""
        spots = self._place(points)
        thickness = max(self.style.line, 0.14) * width
        if self.style.fill == "hatch":
            self._stroke(spots, thickness + 0.14, 0)
        self._stroke(spots, thickness, self._contrast)

    def line(self, points: Points, width: float = 1.0) -> None:
        """A line, always in ink."""
        self._line(self._place(points), max(self.style.line, 0.14) * width)

    @property
    def _contrast(self) -> int:
        return 0 if self.style.fill == INK else INK

    def _place(self, points: Points) -> Points:
        (cx, cy), (sx, sy) = self._centre, self._scale
        scaled = [(x * sx, y * sy) for x, y in points]
        return [(cx + x * self._cos - y * self._sin, cy + x * self._sin + y * self._cos) for x, y in scaled]

    def _line(self, spots: Points, width: float) -> None:
        self._stroke(spots, width, INK)
        if self.style.gap:
            self._stroke(spots, self.style.gap, 0)

    def _stroke(self, spots: Points, width: float, value: int) -> None:
        pixels = max(1, round(width * self._unit))
        self._draw.line(spots, fill=value, width=pixels, joint="curve")
        for x, y in (spots[0], spots[-1]):
            self._draw.ellipse((x - pixels / 2, y - pixels / 2, x + pixels / 2, y + pixels / 2), fill=value)

    def _hatch(self, spots: Points) -> None:
        inside, stripes = Image.new("L", self.mask.size, 0), Image.new("L", self.mask.size, 0)
        ImageDraw.Draw(inside).polygon(spots, fill=255)
        pen, step = ImageDraw.Draw(stripes), max(4, round(0.3 * self._unit))
        width, height = self.mask.size
        for x in range(-height, width, step):
            pen.line([(x, height), (x + height, 0)], fill=170, width=max(1, step // 3))
        self._draw.polygon(spots, fill=0)
        self.mask.paste(ImageChops.multiply(inside, stripes), (0, 0), inside)
