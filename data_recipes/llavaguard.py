"""LlavaGuard: images judged by a safety policy of nine categories, from the web and from SMID; images alone.

The root: hf://datasets/AIML-TUDA/LlavaGuard (access is given on request), or a folder with its Parquet files. The
columns that are read: `image`, `category` ("O1: Hate, Humiliation, Harassment", ..., "NA: None applying") and
`rating` or `safety_label` ("Safe" | "Unsafe", in some releases "Highly Unsafe", "Moderately Unsafe", "Barely
Acceptable", "Generally Acceptable"). Rows whose image was withdrawn have none and are an error (`bad_rows: skip`
leaves them out and counts them).

Labels: unsafe by category, one level higher where the rating is highly unsafe; acceptable and safe images are clean.
The default taxonomy has no type for self-harm and disasters: they are illegal 2.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import hub
from data_recipes.readers.recipe import exchange
from data_recipes.readers.table_row import TableRow, short_repr
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="LlavaGuard, with images of SMID",
    published="hub: AIML-TUDA/LlavaGuard",
    licence="for research; each image from the web and SMID has its own terms, says its card",
    splits=("train", "test"),
    paper="2406.05113",
    carve="train",
)
LABELS = {  # by the category's number
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
RATINGS = {  # degree: 0 is clean, 1 has the category's level, 2 one more
    **dict.fromkeys(("safe", "generally acceptable", "barely acceptable"), 0),
    **dict.fromkeys(("unsafe", "moderately unsafe"), 1),
    "highly unsafe": 2,
}


def samples(root: Path | str, split: str, reader: RowReader) -> list[Sample]:
    """The images, each with a composed question and answer."""
    texts, highest = reader.texts, len(reader.taxonomy.levels) - 1

    def convert(row: TableRow) -> list[Sample]:
        images = hub.images(row.cells, "image")
        rating = row.first_text("rating", "safety_label")
        degree = RATINGS.get(rating.strip().lower())
        if degree is None:
            raise DataError(f"rating {short_repr(rating)} is unknown; known: {', '.join(RATINGS)}")
        label = (CLEAN, 0)
        if degree:
            risk_type, level = reader.label(LABELS, row.first_text("category").partition(":")[0].strip())
            label = (risk_type, min(level + degree - 1, highest))
        return [exchange(row, images, texts.question(row.source), texts.answer(*label, row.source), label)]

    return reader.convert_rows(hub.read_rows(root, split, first=reader.stream), convert, root)
