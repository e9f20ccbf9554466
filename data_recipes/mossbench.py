"""MOSSBench: 300 harmless exchanges that look harmful; they measure over-refusal.

Layout of the root: `information.csv` (also `.json`, `.jsonl`, `.parquet`) with `pid, question, image_path (or image), ...`,
and the images at that path below the root, or below `images/`.

Labels: all clean.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import conversations, files
from data_recipes.readers.tables import Row
from safety_modules.sample import Sample, Turn
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="MOSSBench",
    published="hub: AIcell/MOSSBench",
    licence="CC BY-SA 4.0",
    splits=("all",),
    paper="2406.17806",
    evaluation_only="its authors allow its use as a test set alone, and it has no answers",
)


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """The exchanges, with empty answers."""
    table = files.find(root, "information.csv", "information.json", "information.jsonl", "information.parquet")

    def convert(row: Row) -> list[Sample]:
        name = files.first(row.cells, "image_path", "image")
        folder = root if (root / name).is_file() else root / "images"
        image = files.image(folder if folder.is_dir() else root, name)
        question = conversations.clean(files.first(row.cells, "question"), 1)
        return [Sample((image,), (Turn("user", question), Turn("assistant", "")), CLEAN, 0, row.source)]

    return reading.each(files.rows(table, "question"), convert, table)
