"""SPA-VL: preference pairs on images of harm; the preferred answer is trained on.

The root: hf://datasets/sqrti/SPA-VL, or a folder with its Parquet files (`data/train-*.parquet`,
`validation/validation-*.parquet`, `test/harm-*.parquet`) or saved by `save_to_disk`. A row is `question, image, chosen,
rejected, class1, class2, class3`.

Splits: `train`, `validation`; `harm` and `help` (configuration `test`) have no answers and are for evaluation. Labels: by
`class1`, the six domains. `help` is clean. The published `train` has no classes: its rows are the category `unlabelled`,
illegal 2, unless `labels` says otherwise; their type means little.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import conversations, files, hub
from data_recipes.readers.tables import Row
from safety_modules.sample import Sample, Turn
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="SPA-VL",
    published="hub: sqrti/SPA-VL",
    licence="CC BY 4.0",
    splits=("train", "validation", "harm", "help"),
    paper="2406.12030",
)
UNLABELLED = "unlabelled"
LABELS = {
    "Representation & Toxicity Harms": ("insults", 2),
    "Misinformation Harms": ("misleading", 2),
    "Information & Safety Harms": ("privacy", 2),
    "Malicious Use": ("illegal", 3),
    "Human Autonomy & Integrity Harms": ("illegal", 2),
    "Socioeconomic Harms": ("fairness", 2),
    UNLABELLED: ("illegal", 2),
}
TESTS = ("harm", "help")


def samples(root: Path | str, split: str, reading: Reading) -> list[Sample]:
    """The questions with their preferred answers."""

    def convert(row: Row) -> list[Sample]:
        images = hub.images(row.cells, "image")
        question = conversations.clean(files.text(row.cells, "question", needed=True), len(images))
        label = (CLEAN, 0) if split == "help" else reading.label(LABELS, row.cells.get("class1") or UNLABELLED)
        answer = "" if split in TESTS else files.text(row.cells, "chosen", needed=True)
        return [Sample(images, (Turn("user", question), Turn("assistant", answer)), *label, row.source)]

    config = {"train": None, "validation": "validation"}.get(split, "test")
    patterns = (f"{split}-*.parquet", *(f"{folder}/{split}-*.parquet" for folder in ("data", "validation", "test")))
    rows = hub.rows(root, split, patterns, config, reading.stream)
    return reading.each(rows, convert, root)
