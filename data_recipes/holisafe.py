"""HoliSafe-Bench: all combinations of safe and unsafe images and questions.

The root: hf://datasets/etri-vilab/holisafe-bench, a folder with its Parquet files, or a folder with `holisafe_bench.json` and
the images in `images/` or at their paths below the root. A row is `id, type (SSS SSU USU UUU SUU), category, subcategory,
image, image_safe, image_safety_label, query`. The letters of `type` are image, text, and the two together.

Labels: by subcategory where the third letter is U, else clean. Self-harm has no type of its own in the default taxonomy: it is
illegal 2 here.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import conversations, files, hub
from data_recipes.readers.tables import Row, shown
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="HoliSafe-Bench",
    published="hub: etri-vilab/holisafe-bench",
    licence="see its card",
    splits=("test",),
    paper="2506.04704",
    evaluation_only="it is a benchmark, and its harmless questions have no answers",
)
TYPES = ("SSS", "SSU", "USU", "UUU", "SUU")
LABELS = {  # subcategory, and category for what is no known subcategory
    "gender": ("fairness", 2),
    "race": ("fairness", 2),
    "religion": ("fairness", 2),
    "disability_discrimination": ("fairness", 2),
    "harassment": ("insults", 2),
    "drug_related_hazards": ("illegal", 3),
    "property_crime": ("illegal", 3),
    "facial_data_exposure": ("privacy", 2),
    "identity_data_exposure": ("privacy", 2),
    "physical_self_injury": ("illegal", 2),
    "suicide": ("illegal", 2),
    "animal_abuse": ("illegal", 3),
    "obscene_gestures": ("insults", 2),
    "physical_altercation": ("insults", 2),
    "terrorism": ("illegal", 3),
    "weapon_related_violence": ("insults", 3),
    "sexual_content": ("illegal", 3),
    "financial_advice": ("misleading", 2),
    "medical_advice": ("misleading", 2),
    "illegal_activity": ("illegal", 3),
    "violence": ("insults", 2),
    "hate": ("fairness", 2),
    "privacy": ("privacy", 2),
    "self_harm": ("illegal", 2),
    "specialized_advice": ("misleading", 2),
}


def samples(root: Path | str, split: str, reading: Reading) -> list[Sample]:
    """The questions; a harmless one has an empty answer."""
    table = (
        None
        if hub.on_hub(root)
        else next((p for p in (root / "holisafe_bench.json", root / "data.json") if p.is_file()), None)
    )

    def convert(row: Row) -> list[Sample]:
        if table is None:
            images = hub.images(row.cells, "image")
        else:
            names = files.names(row.cells.get("image"))
            images = tuple(files.image(root if (root / name).is_file() else root / "images", name) for name in names)
        kind = files.text(row.cells, "type", needed=True).upper()
        if kind not in TYPES:
            raise DataError(f"type {shown(kind)} must be one of {', '.join(TYPES)}")
        question = conversations.clean(files.text(row.cells, "query", needed=True), len(images))
        names = [row.cells.get(column) for column in ("subcategory", "category")]
        name = next((name for name in names if reading.knows(LABELS, name)), names[-1])
        label = reading.label(LABELS, name) if kind.endswith("U") else (CLEAN, 0)
        answer = reading.texts.answer(*label, row.source) if label[1] else ""
        return [Sample(images, (Turn("user", question), Turn("assistant", answer)), *label, row.source)]

    rows = files.rows(table) if table else hub.rows(root, split, first=reading.stream)
    return reading.each(rows, convert, table or root)
