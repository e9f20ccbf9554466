"""Image folder: images alone, in a folder for each source or category, as a scraper leaves them.

Layout of the root: `<folder>/**/<image>`, at any depth. The name of a folder directly below the root is the category:
a name of the usual collections (`LABELS`), a type of the taxonomy, or one that the source's `labels` in the YAML
name: `labels: {bully: insults, my_scrape: "illegal:2", rest: null}`.

Questions and answers are composed by type and level (`texts/en.yaml`), in many wordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files
from data_recipes.readers.recipe import exchange, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.prompt.images import SUFFIXES
from safety_modules.sample import DataError, Sample

ABOUT = About(title="Folders of images", published="", licence="the source's own", splits=("train",), carve="train")
# folders, in lower case
LABELS = label_map("""
    insults:2   cyberbullying | bullying
    illegal:3   nsfw | porn | hentai
    illegal:2   sexy
    privacy:2   privacyalert | private
    fairness:2  stable-bias
    politics:2  crowd-activity
    clean:0     neutral | drawings | public
""")


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """A sample for each image file."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give one with a folder of images for each category")
    types = {name: (name, reader.taxonomy.default_level(name)) for name in reader.taxonomy.type_names}
    texts = reader.texts

    def convert(row: TableRow) -> list[Sample]:
        category = row.cells["category"]
        folded = category if category in {**types, **reader.labels} else category.lower()
        label = reader.label({**LABELS, **types}, folded)
        image = files.image_path(root, row.cells["name"])
        return [exchange(row, [image], texts.question(image.name), texts.answer(*label, image.name), label)]

    return reader.convert_rows(_rows(root), convert, root)


def _rows(root: Path) -> Iterator[TableRow]:
    """A row for each image file below the folders of the root."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                name = path.relative_to(root).as_posix()
                yield TableRow(name, {"category": folder.name, "name": name})
