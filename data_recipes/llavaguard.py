"""LlavaGuard: images judged by a safety policy of nine categories, from the web and from SMID; images alone.

The root: hf://datasets/AIML-TUDA/LlavaGuard (access is given on request), or a folder with its Parquet files. Columns that
count: `image`, `category` ("O1: Hate, Humiliation, Harassment", ..., "NA: None applying") and `rating` or `safety_label`
("Safe" | "Unsafe", of some releases "Highly Unsafe", "Moderately Unsafe", "Barely Acceptable", "Generally Acceptable"). Rows
whose image was taken back have none and are refused (`bad_rows: skip` leaves them out and counts them).

Labels: unsafe by category and, where the rating tells, one level up for highly unsafe ones; acceptable and safe ones are
clean. Self-harm and disasters have no type of their own in the default taxonomy: they are illegal 2 here.
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
    title="LlavaGuard, with images of SMID",
    published="hub: AIML-TUDA/LlavaGuard",
    licence="for research; each image from the web and SMID has its own terms, says its card",
    splits=("train", "test"),
    paper="2406.05113",
    carve="train",
)
LABELS = {  # number of the category
    "O1": ("fairness", 2),  # hate, humiliation, harassment
    "O2": ("insults", 2),  # violence, harm, cruelty
    "O3": ("illegal", 3),  # sexual content
    "O4": ("illegal", 3),  # nudity
    "O5": ("illegal", 3),  # criminal planning
    "O6": ("illegal", 2),  # weapons or substance abuse
    "O7": ("illegal", 2),  # self-harm
    "O8": ("insults", 2),  # animal cruelty
    "O9": ("illegal", 2),  # disasters or emergencies
}
RATINGS = {
    "safe": 0,
    "generally acceptable": 0,
    "barely acceptable": 0,
    "unsafe": 1,
    "moderately unsafe": 1,
    "highly unsafe": 2,
}


def samples(root: Path | str, split: str, reading: Reading) -> list[Sample]:
    """The images, each with a composed question and answer."""
    top = len(reading.taxonomy.levels) - 1

    def convert(row: Row) -> list[Sample]:
        images = hub.images(row.cells, "image")
        rating = files.first(row.cells, "rating", "safety_label")
        degree = RATINGS.get(rating.strip().lower())
        if degree is None:
            raise DataError(f"rating {shown(rating)} is unknown; known: {', '.join(RATINGS)}")
        risk_type, level = (CLEAN, 0)
        if degree:
            risk_type, level = reading.label(LABELS, files.first(row.cells, "category").partition(":")[0].strip())
            level = min(level + degree - 1, top)
        turns = (
            Turn("user", reading.texts.question(row.source)),
            Turn("assistant", reading.texts.answer(risk_type, level, row.source)),
        )
        return [Sample(images, turns, risk_type, level, row.source)]

    return reading.each(hub.rows(root, split, first=reading.stream), convert, root)
