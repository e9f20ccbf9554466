"""Gallery: a page of pictures with their labels, risky ones blurred until they are clicked, and what was found about them."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from data_recipes.core.rows import Rows
from data_recipes.inspection.survey import Survey
from safety_modules.prompt.images import ImageError, load_image
from safety_modules.sample import DataError, Picture
from safety_modules.taxonomy import CLEAN

SHOWN = 24  # pictures of each type
LISTED = 200  # findings of each kind
SIDE = 256  # pixels of a thumbnail
OWN = {"style": "_gallery.css", "script": "_gallery.js"}


@dataclass(frozen=True)
class Tile:
    """One picture of the page.

    Attributes:
        image: a data URI, or "" where there is no picture.
        blurred: until it is clicked.
        lines: (name, text) below it.
        missing: said in place of a picture.
    """

    image: str
    blurred: bool
    lines: tuple[tuple[str, str], ...]
    missing: str = "no picture"


@dataclass(frozen=True)
class Section:
    """Tiles under one heading; `count` is how many there are in the data."""

    title: str
    count: int
    tiles: list[Tile]


@dataclass(frozen=True)
class Findings:
    """Lines under one heading; the page shows the first of them."""

    title: str
    lines: list[tuple[str, str]]

    @property
    def shown(self) -> list[tuple[str, str]]:
        """The first of the lines."""
        return self.lines[:LISTED]


Counts = tuple[list[str], list[list[str]]]  # names of the columns, and the lines


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    findings: Sequence[Findings],
    counts: Counts = ([], []),
) -> str:
    """The page: HTML with all in it, that loads nothing and runs no script but its own."""
    folder = Path(__file__).parent
    env = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined)
    own = {name: (folder / file).read_text(encoding="utf-8") for name, file in OWN.items()}
    hashes = {f"{name}_hash": _hash(text) for name, text in own.items()}
    own = {name: Markup(text) for name, text in own.items()}
    return env.get_template("_gallery.html.jinja").render(
        title=title, facts=facts, counts=counts, sections=sections, findings=findings, **own, **hashes
    )


def _hash(text: str) -> str:
    """What a page's policy names a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def counts(survey: Survey) -> Counts:
    """Rows by type and level, with sums."""
    levels = sorted({level for _, level in survey.labels})
    lines = []
    for name in survey.rows_by_type:
        numbers = [survey.labels[name, level] for level in levels]
        lines.append([name, *(f"{number:,}" if number else "" for number in numbers), f"{sum(numbers):,}"])
    sums = [sum(count for (_, at), count in survey.labels.items() if at == level) for level in levels]
    if len(lines) > 1:
        lines.append(["all", *(f"{number:,}" for number in sums), f"{sum(sums):,}"])
    return ["type", *(f"level {level}" for level in levels), "all"], lines


def sections(rows: Rows, survey: Survey) -> list[Section]:
    """Some rows of each type, evenly spread."""
    found = []
    for name, places in survey.rows_by_type.items():
        chosen = [places[i] for i in np.linspace(0, len(places) - 1, min(SHOWN, len(places))).astype(int)]
        tiles = []
        for place in chosen:
            sample = rows[place]
            lines = (
                ("level", str(sample.risk_level)),
                ("asks", sample.question),
                ("answer", sample.answer),
                ("row", sample.source),
            )
            missing = "the picture cannot be read" if sample.images else "no picture"
            tiles.append(Tile(thumbnail(sample.images), name != CLEAN, lines, missing))
        found.append(Section(name, len(places), tiles))
    return found


def findings(survey: Survey) -> list[Findings]:
    """What the survey found, by kind."""
    same = [(" = ".join(f"{look.source} {look.name}" for look in group), "the same file") for group in survey.same]
    alike = [
        (f"{a.source} {a.name}", f"looks like {b.source} {b.name} ({bits} of 64 bits differ)")
        for a, b, bits in survey.alike
    ]
    leaks = [
        (
            f"{source} {name}",
            f"{'is' if not bits else 'looks like'} {other} of {split}"
            + (f" ({bits} of 64 bits differ)" if bits else ""),
        )
        for source, name, other, split, bits in survey.leaks
    ]
    kinds = (
        ("Held-out pictures among those to train on", leaks),
        ("Broken", survey.broken),
        ("Suspicious", survey.suspicious),
        ("The same picture under several names", same),
        ("Pictures that look the same", alike),
    )
    return [Findings(title, list(lines)) for title, lines in kinds]


def thumbnail(pictures: Iterable[Picture]) -> str:
    """The first picture that can be read as a small JPEG, a data URI; "" where there is none."""
    for picture in pictures:
        try:
            image = load_image(picture)
        except (ImageError, DataError):
            continue
        image.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    return ""
