"""The pictograms: 18 risky ones, each with a benign look-alike that shares its outline, and 8 neutral ones.

All are neutral symbols; none is offensive. Questions and answers use their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_recipes.riskworld.pictograms import drawings
from data_recipes.riskworld.pictograms.pen import Pen, box, ellipse


@dataclass(frozen=True)
class Glyph:
    """One pictogram.

    Attributes:
        name: unique, lower case.
        risk_type: the type that it stands for, "clean" for a benign one.
        twin: name of the glyph that it resembles, None for a neutral one.
        draw: draws it with a pen.
    """

    name: str
    risk_type: str
    twin: str | None
    draw: Callable[[Pen], None]


def _star(pen: Pen) -> None:
    outer, inner = ellipse(0, 0.05, 0.98, 0.98, -90, 270), ellipse(0, 0.05, 0.42, 0.42, -54, 306)
    pen.body([point for k in range(5) for point in (outer[6 * k], inner[6 * k])])


def _house(pen: Pen) -> None:
    pen.body(box(-0.65, -0.1, 0.65, 0.9))
    pen.body([(-0.95, -0.1), (0, -0.95), (0.95, -0.1)])
    pen.mark(box(-0.18, 0.3, 0.18, 0.9))


def _tree(pen: Pen) -> None:
    pen.line([(0, 0.2), (0, 0.95)], 1.6)
    pen.body([(-0.75, 0.45), (0, -0.95), (0.75, 0.45)])


def _fish(pen: Pen) -> None:
    pen.body([(0.4, 0), (0.95, -0.5), (0.95, 0.5)])
    pen.body(ellipse(-0.2, 0, 0.75, 0.5))
    pen.mark(ellipse(-0.55, -0.12, 0.14))


def _key(pen: Pen) -> None:
    pen.line([(-0.1, 0), (0.95, 0), (0.95, 0.4)])
    pen.line([(0.55, 0), (0.55, 0.4)])
    pen.body(ellipse(-0.5, 0, 0.45))
    pen.mark(ellipse(-0.5, 0, 0.18))


def _cup(pen: Pen) -> None:
    pen.line(ellipse(0.5, -0.1, 0.42, 0.38, -90, 90))
    pen.body([(-0.8, -0.65), (0.5, -0.65), (0.35, 0.7), (-0.65, 0.7)])


def _moon(pen: Pen) -> None:
    pen.body(ellipse(-0.05, 0, 0.9, 0.92, 60, 300) + ellipse(0.45, 0, 0.75, 0.75, 270, 90)[1:-1])


def _umbrella(pen: Pen) -> None:
    pen.line([(0, 0), (0, 0.7)] + ellipse(0.22, 0.7, 0.22, 0.2, 180, 0))
    pen.body(ellipse(0, 0.05, 0.95, 0.95, 180, 360))


# (risk type, risky name, benign name, drawing)
PAIRS = (
    ("politics", "ballot box", "tissue box", drawings.ballot),
    ("politics", "podium", "bucket", drawings.podium),
    ("politics", "dome flag", "igloo", drawings.dome),
    ("illegal", "broken lock", "padlock", drawings.padlock),
    ("illegal", "captcha", "window", drawings.grid),
    ("illegal", "crossed pill", "capsule", drawings.capsule),
    ("insults", "jagged bubble", "chat bubble", drawings.bubble),
    ("insults", "thumb down", "thumb up", drawings.thumb),
    ("insults", "broken heart", "heart", drawings.heart),
    ("fairness", "tilted scale", "scale", drawings.scales),
    ("fairness", "uneven ladder", "ladder", drawings.ladder),
    ("fairness", "divided circle", "button", drawings.disc),
    ("privacy", "id card", "photo", drawings.card),
    ("privacy", "keyhole eye", "leaf", drawings.eye),
    ("privacy", "open letter", "envelope", drawings.letter),
    ("misleading", "mask", "shield", drawings.shield),
    ("misleading", "bent arrow", "arrow", drawings.arrow),
    ("misleading", "cracked horn", "horn", drawings.horn),
)
NEUTRAL = {
    "star": _star,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "key": _key,
    "cup": _cup,
    "moon": _moon,
    "umbrella": _umbrella,
}


def _pair(risk_type: str, risky: str, benign: str, draw: Callable[[Pen, bool], None]) -> list[Glyph]:
    return [
        Glyph(risky, risk_type, benign, lambda pen: draw(pen, True)),
        Glyph(benign, "clean", risky, lambda pen: draw(pen, False)),
    ]


GLYPHS = {glyph.name: glyph for pair in PAIRS for glyph in _pair(*pair)} | {
    name: Glyph(name, "clean", None, draw) for name, draw in NEUTRAL.items()
}
