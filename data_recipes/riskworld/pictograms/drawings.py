"""Drawings of the 18 pairs: a risky pictogram, or the benign look-alike with its outline. None is offensive."""

from __future__ import annotations

from data_recipes.riskworld.pictograms.pen import Pen, box, ellipse


def ballot(pen: Pen, risky: bool) -> None:
    """A box and a slip; a cross, or an opening."""
    pen.body(box(-0.85, -0.3, 0.85, 0.9))
    pen.body(box(-0.45, -0.95, 0.45, -0.3))
    if risky:
        pen.scratch([(-0.5, -0.05), (0.5, 0.65)], 1.4)
        pen.scratch([(-0.5, 0.65), (0.5, -0.05)], 1.4)
    else:
        pen.mark(ellipse(0, 0.3, 0.6, 0.25))


def podium(pen: Pen, risky: bool) -> None:
    """A tapered stand; a microphone, or a handle."""
    pen.body([(-0.8, -0.15), (0.8, -0.15), (0.5, 0.9), (-0.5, 0.9)])
    if risky:
        pen.line([(0.1, -0.15), (-0.3, -0.65)])
        pen.body(ellipse(-0.4, -0.75, 0.27))
    else:
        pen.line(ellipse(0, -0.15, 0.75, 0.75, 180, 360))


def dome(pen: Pen, risky: bool) -> None:
    """A dome; a flag, or a door."""
    pen.body(ellipse(0, 0.5, 0.8, 0.75, 180, 360))
    pen.body(box(-0.95, 0.5, 0.95, 0.85))
    if risky:
        pen.line([(0, -0.25), (0, -0.95)])
        pen.body(box(0, -0.98, 0.65, -0.55))
    else:
        pen.mark(ellipse(0, 0.6, 0.4, 0.55, 180, 360))


def padlock(pen: Pen, risky: bool) -> None:
    """A lock; an open shackle and a crack, or a closed one."""
    if risky:
        pen.line([(0.55, 0), (0.55, -0.5)] + ellipse(0.05, -0.55, 0.5, 0.4, 0, -180) + [(-0.45, -0.42)], 1.2)
    else:
        pen.line([(0.45, 0)] + ellipse(0, -0.35, 0.45, 0.5, 0, -180) + [(-0.45, 0)], 1.2)
    pen.body(box(-0.75, -0.02, 0.75, 0.92))
    if risky:
        pen.scratch([(-0.4, 0.15), (0, 0.5), (-0.1, 0.55), (0.35, 0.8)], 1.2)
    else:
        pen.mark(ellipse(0, 0.45, 0.24))


def grid(pen: Pen, risky: bool) -> None:
    """A square; a chequered grid, or four panes."""
    pen.body(box(-0.88, -0.88, 0.88, 0.88))
    if risky:
        for x, y in ((-0.55, -0.55), (0.55, -0.55), (0, 0), (-0.55, 0.55), (0.55, 0.55)):
            pen.mark(box(x - 0.24, y - 0.24, x + 0.24, y + 0.24))
    else:
        for line in ([(0, -0.85), (0, 0.85)], [(-0.85, 0), (0.85, 0)]):
            pen.scratch(line)


def capsule(pen: Pen, risky: bool) -> None:
    """A capsule; crossed out, or whole."""
    pen.body(ellipse(-0.5, 0, 0.45, 0.5, 90, 270) + ellipse(0.5, 0, 0.45, 0.5, -90, 90))
    if risky:
        pen.line([(-0.7, 0.95), (0.7, -0.95)], 1.6)
        pen.line([(-0.7, -0.95), (0.7, 0.95)], 1.6)
    else:
        pen.scratch([(0, -0.45), (0, 0.45)])


def bubble(pen: Pen, risky: bool) -> None:
    """A speech bubble; a jagged line, or two lines of text."""
    pen.body(box(-0.92, -0.8, 0.92, 0.4)[:3] + [(0.0, 0.4), (-0.5, 0.95), (-0.45, 0.4), (-0.92, 0.4)])
    if risky:
        pen.scratch([(-0.7, 0.1), (-0.35, -0.5), (0, 0.1), (0.35, -0.5), (0.7, 0.1)], 1.1)
    else:
        for y in (-0.4, 0.0):
            pen.scratch([(-0.55, y), (0.55, y)])


def thumb(pen: Pen, risky: bool) -> None:
    """A fist; the thumb down, or up."""
    way = -1 if risky else 1
    pen.body(box(-0.4, -0.95 * way, 0.02, -0.1 * way))
    pen.body(box(-0.5, -0.2 * way, 0.75, 0.75 * way))
    pen.body(box(-0.95, -0.3 * way, -0.6, 0.85 * way))
    pen.scratch([(0.15, 0.15 * way), (0.7, 0.15 * way)])
    pen.scratch([(0.15, 0.45 * way), (0.7, 0.45 * way)])


def heart(pen: Pen, risky: bool) -> None:
    """A heart; broken, or whole."""
    top = ellipse(-0.45, -0.35, 0.48, 0.48, 160, 350) + ellipse(0.45, -0.35, 0.48, 0.48, 190, 380)
    pen.body(top + [(0, 0.9)])
    if risky:
        pen.scratch([(0.05, -0.45), (-0.25, -0.1), (0.25, 0.2), (-0.05, 0.75)], 1.6)


def scales(pen: Pen, risky: bool) -> None:
    """Scales; tilted, or level."""
    tilt = 0.42 if risky else 0.0
    for line in ([(0, -0.85), (0, 0.85)], [(-0.45, 0.88), (0.45, 0.88)], [(-0.7, -0.55 - tilt), (0.7, -0.55 + tilt)]):
        pen.line(line)
    for x, y in ((-0.66, -0.5 - tilt), (0.66, -0.5 + tilt)):
        pen.body([(x, y), (x + 0.3, y + 0.55), (x - 0.3, y + 0.55)])


def ladder(pen: Pen, risky: bool) -> None:
    """A ladder; rungs askew, or level."""
    for x in (-0.5, 0.5):
        pen.line([(x, -0.95), (x, 0.95)])
    if risky:
        pen.line([(-0.5, -0.7), (0.5, -0.15), (-0.5, 0.2), (0.5, 0.75)])
    else:
        for y in (-0.6, -0.2, 0.2, 0.6):
            pen.line([(-0.5, y), (0.5, y)])


def disc(pen: Pen, risky: bool) -> None:
    """A disc; halved, or with four holes."""
    pen.body(ellipse(0, 0, 0.9))
    if risky:
        pen.mark(ellipse(0, 0, 0.75, 0.75, -90, 90))
    else:
        for x, y in ((-0.3, -0.3), (0.3, -0.3), (-0.3, 0.3), (0.3, 0.3)):
            pen.mark(ellipse(x, y, 0.17))


def card(pen: Pen, risky: bool) -> None:
    """A card; a person and text, or a mountain."""
    pen.body(box(-0.95, -0.7, 0.95, 0.7))
    if risky:
        pen.mark(ellipse(-0.42, -0.25, 0.22))
        pen.mark(ellipse(-0.42, 0.5, 0.36, 0.38, 180, 360))
        for y in (-0.25, 0.2):
            pen.scratch([(0.2, y), (0.7, y)])
    else:
        pen.mark([(-0.75, 0.5), (-0.1, -0.45), (0.25, 0.1), (0.45, -0.1), (0.75, 0.5)])


def eye(pen: Pen, risky: bool) -> None:
    """An almond shape; a keyhole, or the veins of a leaf."""
    pen.body(ellipse(0, 0.55, 1.05, 1.15, 208, 332) + ellipse(0, -0.55, 1.05, 1.15, 28, 152))
    if risky:
        pen.mark(ellipse(0, -0.1, 0.25))
        pen.mark([(-0.1, 0), (0.1, 0), (0.25, 0.45), (-0.25, 0.45)])
    else:
        pen.scratch([(-0.9, 0), (0.85, 0)])
        for x in (-0.3, 0.2):
            pen.scratch([(x, 0), (x + 0.25, -0.3)], 0.8)
            pen.scratch([(x, 0), (x + 0.25, 0.3)], 0.8)


def letter(pen: Pen, risky: bool) -> None:
    """An envelope; open, or closed."""
    if risky:
        pen.body([(-0.9, -0.15), (0, -0.95), (0.9, -0.15)])
        pen.body(box(-0.9, -0.15, 0.9, 0.85))
        pen.scratch([(-0.85, -0.1), (0, 0.5), (0.85, -0.1)], 1.2)
    else:
        pen.body(box(-0.9, -0.55, 0.9, 0.75))
        pen.scratch([(-0.85, -0.5), (0, 0.2), (0.85, -0.5)])


def shield(pen: Pen, risky: bool) -> None:
    """A shield shape; an angry face, or a cross."""
    pen.body([(-0.8, -0.85), (0.8, -0.85), (0.75, 0.1), (0.45, 0.6), (0, 0.95), (-0.45, 0.6), (-0.75, 0.1)])
    if risky:
        pen.mark([(-0.6, -0.55), (-0.12, -0.25), (-0.55, -0.1)])
        pen.mark([(0.6, -0.55), (0.12, -0.25), (0.55, -0.1)])
        pen.scratch(ellipse(0, 0.6, 0.4, 0.32, 200, 340))
    else:
        pen.scratch([(0, -0.6), (0, 0.6)], 1.5)
        pen.scratch([(-0.5, -0.2), (0.5, -0.2)], 1.5)


def arrow(pen: Pen, risky: bool) -> None:
    """An arrow; bent back, or straight."""
    if risky:
        pen.line([(-0.5, 0.9), (-0.5, -0.4)] + ellipse(0.0, -0.4, 0.5, 0.45, 180, 360) + [(0.5, 0.1)], 1.5)
        pen.body([(0.1, 0.1), (0.9, 0.1), (0.5, 0.75)])
    else:
        pen.line([(0, 0.9), (0, -0.3)], 1.5)
        pen.body([(-0.5, -0.25), (0.5, -0.25), (0, -0.95)])


def horn(pen: Pen, risky: bool) -> None:
    """A horn; cracked and crossed, or sounding."""
    pen.body([(-0.9, -0.2), (-0.45, -0.25), (0.3, -0.75), (0.3, 0.75), (-0.45, 0.25), (-0.9, 0.2)])
    pen.body([(-0.6, 0.25), (-0.25, 0.35), (-0.2, 0.85), (-0.5, 0.85)])
    if risky:
        pen.scratch([(0.2, -0.4), (-0.25, -0.15), (0.1, 0.1), (-0.35, 0.35)], 1.3)
        pen.line([(0.6, -0.45), (0.95, 0.35)])
        pen.line([(0.95, -0.45), (0.6, 0.35)])
    else:
        pen.line(ellipse(0.3, 0, 0.35, 0.5, -60, 60))
        pen.line(ellipse(0.3, 0, 0.65, 0.85, -60, 60))
