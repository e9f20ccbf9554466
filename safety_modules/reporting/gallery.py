"""Gallery: a page of images with their labels, risky ones blurred until clicked, and findings about the data."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safety_modules.prompt.images import ImageError, data_uri, load_image
from safety_modules.reporting.templates import FOLDER, environment
from safety_modules.sample import DataError, ImageSource

SHOWN = 24  # images of each type
LISTED = 200  # findings under each heading
SIDE = 256  # pixels of a thumbnail
OWN = {"style": "css", "script": "js"}


@dataclass(frozen=True)
class Tile:
    """One image of the page.

    Attributes:
        image: a data URI, or "" where there is no image.
        blurred: until it is clicked.
        lines: (name, text) below it.
        missing: shown in place of an image.
    """

    image: str
    blurred: bool
    lines: tuple[tuple[str, str], ...]
    missing: str = "no image"


@dataclass(frozen=True)
class Section:
    """Tiles under one heading; `count` is the number of such rows in the data."""

    title: str
    count: int
    tiles: list[Tile]


@dataclass(frozen=True)
class Findings:
    """Lines under one heading; the page shows the first of them."""

    title: str
    lines: list[tuple[str, str]]


Counts = tuple[list[str], list[list[str]]]  # names of the columns, and the lines


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    findings: Sequence[Findings],
    counts: Counts = ([], []),
) -> str:
    """The page: HTML without external resources; its security policy allows its own script and style alone."""
    values = {"title": title, "facts": facts, "counts": counts, "sections": sections, "findings": findings}
    for name, end in OWN.items():
        text = (FOLDER / f"gallery.{end}").read_text(encoding="utf-8")
        values |= {name: Markup(text), f"{name}_hash": _hash(text)}
    return environment().get_template("gallery.html.jinja").render(**values, listed=LISTED)


def _hash(text: str) -> str:
    """A script or style as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def thumbnail(images: Iterable[ImageSource]) -> str:
    """The first readable image as a small JPEG data URI; "" where there is none."""
    for source in images:
        try:
            return data_uri(load_image(source), SIDE, quality=80)
        except (ImageError, DataError):
            continue
    return ""
