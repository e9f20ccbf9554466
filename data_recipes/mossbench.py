"""MOSSBench: 300 harmless exchanges that look harmful, to measure over-refusal.

Layout of the root: `information.csv` (also `.json`, `.jsonl`, `.parquet`) with `pid, question, image_path (or image),
...`, and the images at that path below the root, or below `images/`.

Labels: all clean.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files
from data_recipes.readers.recipe import exchange, find_image
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="MOSSBench",
    published="hub: AIcell/MOSSBench",
    licence="CC BY-SA 4.0",
    splits=("all",),
    paper="2406.17806",
    evaluation_only="its authors allow its use as a test set alone, and it has no answers",
)


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """The exchanges, with empty answers."""
    table = files.find(root, "information.csv", "information.json", "information.jsonl", "information.parquet")
    folders = [folder for folder in (root, root / "images") if folder.is_dir()]

    def convert(row: TableRow) -> list[Sample]:
        image = find_image(row.first_text("image_path", "image"), *folders)
        return [exchange(row, [image], row.first_text("question"), "", (CLEAN, 0))]

    return reader.convert_rows(files.read_rows(table, "question"), convert, table)
