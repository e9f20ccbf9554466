"""UnsafeBench: photographs and generated images, judged safe or unsafe in eleven categories; images alone.

The root: hf://datasets/yiting/UnsafeBench (access is given on request), or a folder with its Parquet files
(`data/train-*.parquet`, `data/test-*.parquet`). A row is `image, safety_label ("Safe" | "Unsafe"), category, source`.

Labels: unsafe by category, safe is clean, whatever its category. Questions and answers are composed. Self-harm and shocking
images have no type of their own in the default taxonomy: they are illegal 2 here.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import files, hub
from data_recipes.readers.tables import Row, shown
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="UnsafeBench",
    published="hub: yiting/UnsafeBench",
    licence="none named; for research purposes only, says its card",
    splits=("train", "test"),
    paper="2405.03486",
    carve="train",
)
LABELS = {
    "Hate": ("fairness", 2),
    "Harassment": ("insults", 2),
    "Violence": ("insults", 2),
    "Self-Harm": ("illegal", 2),
    "Sexual": ("illegal", 3),
    "Shocking": ("illegal", 2),
    "Illegal activity": ("illegal", 3),
    "Deception": ("misleading", 2),
    "Political": ("politics", 3),
    "Health": ("misleading", 2),
    "Public and personal health": ("misleading", 2),
    "Spam": ("misleading", 1),
}


def samples(root: Path | str, split: str, reading: Reading) -> list[Sample]:
    """The images, each with a composed question and answer."""

    def convert(row: Row) -> list[Sample]:
        images = hub.images(row.cells, "image")
        verdict = files.text(row.cells, "safety_label", needed=True).lower()
        if verdict not in ("safe", "unsafe"):
            raise DataError(f"safety_label {shown(verdict)} must be Safe or Unsafe")
        label = (CLEAN, 0) if verdict == "safe" else reading.label(LABELS, row.cells.get("category"))
        turns = (
            Turn("user", reading.texts.question(row.source)),
            Turn("assistant", reading.texts.answer(*label, row.source)),
        )
        return [Sample(images, turns, *label, row.source)]

    return reading.each(hub.rows(root, split, first=reading.stream), convert, root)
