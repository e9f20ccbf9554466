"""SIUO: image and question are safe each by itself, and a good answer sees the danger of the two together.

Layout of the root: `siuo_gen.json` or `data/siuo_gen.json` (`question_id, image, question, category, safety_warning,
reference_answer`) and the images in `images/`.

Labels: by category, of which there are nine; level 1 or 2, since a reference answer warns and does not only refuse. Self-harm
and religion have no type of their own in the default taxonomy.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import conversations, files
from data_recipes.readers.tables import Row
from safety_modules.sample import Sample, Turn

ABOUT = About(
    title="SIUO",
    published="hub: sinwang/SIUO",
    licence="see its card",
    splits=("all",),
    paper="2406.15279",
    evaluation_only="it is a benchmark of 167 rows, and a model that was trained on it cannot be measured on it",
)
LABELS = {
    "self-harm": ("illegal", 2),
    "illegal activities & crime": ("illegal", 2),
    "privacy violation": ("privacy", 2),
    "information misinterpretation": ("misleading", 1),
    "religion beliefs": ("fairness", 1),
    "discrimination & stereotyping": ("fairness", 2),
    "controversial topics, politics": ("politics", 2),
    "morality": ("insults", 1),
    "dangerous behavior": ("illegal", 2),
}


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """The questions with their reference answers."""
    table = files.find(root, "siuo_gen.json", "data/siuo_gen.json")
    folder = next((place for place in (table.parent / "images", root / "images") if place.is_dir()), root)

    def convert(row: Row) -> list[Sample]:
        image = files.image(folder, files.first(row.cells, "image"))
        question = conversations.clean(files.text(row.cells, "question", needed=True), 1)
        label = reading.label(LABELS, row.cells.get("category"))
        answer = files.text(row.cells, "reference_answer") or reading.texts.answer(*label, row.source)
        return [Sample((image,), (Turn("user", question), Turn("assistant", answer)), *label, row.source)]

    return reading.each(files.rows(table), convert, table)
