"""Gallery: a page of images with their labels, risky ones blurred until they are clicked, and findings about them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from safety_modules.prompt.images import ImageError, data_uri, load_image
from safety_modules.sample import DataError, ImageSource

SHOWN = 24  # images of each type
LISTED = 200  # findings of each kind
SIDE = 256  # pixels of a thumbnail
OWN = {"style": "gallery.css", "script": "gallery.js"}


@dataclass(frozen=True)
class Tile:
    """One image of the page.

    Attributes:
        image: a data URI, or "" where there is no image.
        blurred: until it is clicked.
        lines: (name, text) below it.
        missing: said in place of an image.
    """

    image: str
    blurred: bool
    lines: tuple[tuple[str, str], ...]
    missing: str = "no image"


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
    return env.get_template("gallery.html.jinja").render(
        title=title, facts=facts, counts=counts, sections=sections, findings=findings, **own, **hashes
    )


def _hash(text: str) -> str:
    """What a page's policy names a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def thumbnail(images: Iterable[ImageSource]) -> str:
    """The first image that can be read as a small JPEG, a data URI; "" where there is none."""
    for source in images:
        try:
            image = load_image(source)
        except (ImageError, DataError):
            continue
        return data_uri(image, SIDE, quality=80)
    return ""
