"""SPA-VL: preference pairs on images of harm; the preferred answer is trained on.

The root: hf://datasets/sqrti/SPA-VL; or a folder with its Parquet files (`data/train-*.parquet`,
`validation/validation-*.parquet`, `test/harm-*.parquet`) or written by `save_to_disk`. A row is `question, image,
chosen, rejected, class1, class2, class3`.

Splits: `train`, `validation`; `harm` and `help` (configuration `test`) have no answers and are for evaluation.
Labels: by `class1`, the six domains; `help` is clean. The published `train` has no classes: its rows have the
category `unlabelled`, which is illegal 2 unless `labels` says otherwise, so their type means little.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import hub
from data_recipes.readers.recipe import exchange, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="SPA-VL",
    published="hub: sqrti/SPA-VL",
    licence="CC BY 4.0",
    splits=("train", "validation", "harm", "help"),
    paper="2406.12030",
)
UNLABELLED = "unlabelled"
LABELS = label_map("""
    insults:2     Representation & Toxicity Harms
    misleading:2  Misinformation Harms
    privacy:2     Information & Safety Harms
    illegal:3     Malicious Use
    illegal:2     Human Autonomy & Integrity Harms | unlabelled
    fairness:2    Socioeconomic Harms
""")
TESTS = ("harm", "help")


def samples(root: Path | str, split: str, reader: RowReader) -> list[Sample]:
    """The questions with their preferred answers."""

    def convert(row: TableRow) -> list[Sample]:
        images, question = hub.images(row.cells, "image"), row.text("question", needed=True)
        label = (CLEAN, 0) if split == "help" else reader.label(LABELS, row.cells.get("class1") or UNLABELLED)
        answer = "" if split in TESTS else row.text("chosen", needed=True)
        return [exchange(row, images, question, answer, label)]

    config = {"train": None, "validation": "validation"}.get(split, "test")
    patterns = (f"{split}-*.parquet", *(f"{folder}/{split}-*.parquet" for folder in ("data", "validation", "test")))
    rows = hub.read_rows(root, split, patterns, config, reader.stream)
    return reader.convert_rows(rows, convert, root)
