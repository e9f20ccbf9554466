"""VLSBench: harmful requests whose harm is in the image alone, so that the text does not give it away.

Layout of the root: `data.json` (a list of rows `instruction, image_path, category, sub_category, ...`) and the images
at that path below the root, or below `imgs/`; or hf://datasets/Foreshhh/vlsbench, or a folder with its Parquet files
(`image` in place of `image_path`).

Labels: by category. The default taxonomy has no type for self-harm: it is illegal 2.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files, hub
from data_recipes.readers.recipe import exchange, find_image, find_table, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample

ABOUT = About(
    title="VLSBench",
    published="hub: Foreshhh/vlsbench",
    licence="Apache-2.0; some images are UnsafeBench's, which are for research only",
    splits=("train",),  # the hub's name of its only split
    paper="2411.19939",
    evaluation_only="it is a benchmark, and a model that was trained on it cannot be measured on it",
)
LABELS = label_map("""
    illegal:3   Erotic | Erotic Content | Illegal Activity
    illegal:2   Self-Harm
    fairness:2  Hate | Hate Speech
    privacy:2   Privacy | Privacy Violation
    insults:2   Violent | Violence
""")


def samples(root: Path | str, split: str, reader: RowReader) -> list[Sample]:
    """The requests, with composed answers."""
    table = find_table(root, "data.json")

    def convert(row: TableRow) -> list[Sample]:
        if table:
            images = [find_image(row.first_text("image_path", "image"), root, root / "imgs")]
        else:
            images = hub.images(row.cells, "image")
        question = row.text("instruction", needed=True)
        label = reader.label(LABELS, row.cells.get("category"))
        return [exchange(row, images, question, reader.texts.answer(*label, row.source), label)]

    rows = files.read_rows(table) if table else hub.read_rows(root, split, first=reader.stream)
    return reader.convert_rows(rows, convert, table or root)
