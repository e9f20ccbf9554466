"""Image folder: images alone, in a folder for each source or category, as a scraper leaves them.

Layout of the root: `<folder>/**/<image>`, any depth. The name of a folder directly below the root is the category. Names of
the usual collections are known (`LABELS`), and so is every type of the taxonomy; others are named in the source's `labels`:
`labels: {bully: insults, my_scrape: "illegal:2", rest: null}`.

Questions and answers are composed by type and level (`texts/en.yaml`), in many wordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import files
from data_recipes.readers.tables import Row
from safety_modules.prompt.images import SUFFIXES
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import CLEAN

ABOUT = About(title="Folders of images", published="", licence="the source's own", splits=("train",), carve="train")
LABELS = {  # folder, in small letters -> label
    "cyberbullying": ("insults", 2),
    "bullying": ("insults", 2),
    "nsfw": ("illegal", 3),
    "porn": ("illegal", 3),
    "hentai": ("illegal", 3),
    "sexy": ("illegal", 2),
    "privacyalert": ("privacy", 2),
    "private": ("privacy", 2),
    "stable-bias": ("fairness", 2),
    "crowd-activity": ("politics", 2),
    "neutral": (CLEAN, 0),
    "drawings": (CLEAN, 0),
    "public": (CLEAN, 0),
}


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """A sample for each image file."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give one with a folder of images for each category")
    types = {name: (name, reading.taxonomy.default_level(name)) for name in reading.taxonomy.type_names}

    def convert(row: Row) -> list[Sample]:
        category = row.cells["category"]
        known = category if category in {**types, **reading.labels} else category.lower()
        label = reading.label({**LABELS, **types}, known)
        image = files.image(root, row.cells["name"])
        turns = (
            Turn("user", reading.texts.question(image.name)),
            Turn("assistant", reading.texts.answer(*label, image.name)),
        )
        return [Sample((image,), turns, *label, row.source)]

    return reading.each(_rows(root), convert, root)


def _rows(root: Path) -> Iterator[Row]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                name = path.relative_to(root).as_posix()
                yield Row(name, {"category": folder.name, "name": name})
