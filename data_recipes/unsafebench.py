"""UnsafeBench: photographs and generated images, judged safe or unsafe in eleven categories; images alone.

The root: hf://datasets/yiting/UnsafeBench (access is given on request), or a folder with its Parquet files
(`data/train-*.parquet`, `data/test-*.parquet`). A row is `image, safety_label ("Safe" | "Unsafe"), category, source`.

Labels: unsafe by category; safe is clean, whatever its category. Questions and answers are composed. The default
taxonomy has no type for self-harm and shocking images: they are illegal 2.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import hub
from data_recipes.readers.recipe import choice, exchange, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="UnsafeBench",
    published="hub: yiting/UnsafeBench",
    licence="none named; for research purposes only, says its card",
    splits=("train", "test"),
    paper="2405.03486",
    carve="train",
)
LABELS = label_map("""
    fairness:2    Hate
    insults:2     Harassment | Violence
    illegal:3     Sexual | Illegal activity
    illegal:2     Self-Harm | Shocking
    misleading:2  Deception | Health | Public and personal health
    misleading:1  Spam
    politics:3    Political
""")


def samples(root: Path | str, split: str, reader: RowReader) -> list[Sample]:
    """The images, each with a composed question and answer."""
    texts = reader.texts

    def convert(row: TableRow) -> list[Sample]:
        images = hub.images(row.cells, "image")
        safe = choice(row, "safety_label", ("Safe", "Unsafe")) == "Safe"
        label = (CLEAN, 0) if safe else reader.label(LABELS, row.cells.get("category"))
        return [exchange(row, images, texts.question(row.source), texts.answer(*label, row.source), label)]

    return reader.convert_rows(hub.read_rows(root, split, first=reader.stream), convert, root)
