"""BeaverTails-V: images of twenty kinds of harm, each with a question and answers that people judged safe or not.

The root: hf://datasets/PKU-Alignment/BeaverTails-V, or a folder with one folder for each category that holds its Parquet files
(`<category>/train-*.parquet`, `<category>/evaluation-*.parquet`, as the hub lays them), or one folder with all of them. A row
is `question, image, category, image_severity, response, is_response_safe`; some files have two answers, `response_1,
response_2, safer_response_id, is_response_1_safe, is_response_2_safe`.

Splits: `train`, `evaluation`. An answer that people judged unsafe is never trained on: a composed one stands in its place.
Labels: by category.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import conversations, files, hub
from data_recipes.readers.tables import Row
from safety_modules.sample import Sample, Turn

ABOUT = About(
    title="BeaverTails-V",
    published="hub: PKU-Alignment/BeaverTails-V",
    licence="CC BY-NC 4.0",
    splits=("train", "evaluation"),
    paper="2503.17682",
    carve="train",
)
LABELS = {
    "animal_abuse": ("illegal", 3),
    "dangerous_behavior": ("illegal", 2),
    "deception_in_personal_relationships": ("misleading", 2),
    "discriminatory_depictions": ("fairness", 2),
    "environmental_damage": ("illegal", 2),
    "false_information": ("misleading", 2),
    "financial_and_academic_fraud": ("illegal", 3),
    "hacking_or_digital_crime": ("illegal", 3),
    "harmful_health_content": ("misleading", 2),
    "horror_and_gore": ("illegal", 2),
    "identity_misuse_and_impersonation": ("privacy", 2),
    "insulting_and_harassing_behavior": ("insults", 2),
    "pornographic_content": ("illegal", 3),
    "privacy_invasion_and_surveillance": ("privacy", 3),
    "psychological_harm_and_manipulation": ("insults", 2),
    "psychological_horror_and_dark_themes": ("illegal", 2),
    "sensitive_information_in_key_areas": ("politics", 2),  # misinformation on politics, religion and security
    "sexual_crimes": ("illegal", 3),
    "terrorism_or_extremism": ("illegal", 3),
    "violence_and_physical_harm": ("insults", 3),
}


def samples(root: Path | str, split: str, reading: Reading) -> list[Sample]:
    """The questions with a safe answer each."""

    def convert(row: Row) -> list[Sample]:
        cells = row.cells
        images = hub.images(cells, "image")
        question = conversations.clean(files.text(cells, "question", needed=True), len(images))
        label = reading.label(LABELS, cells.get("category"))
        answer = _safe_answer(cells) or reading.texts.answer(*label, row.source)
        return [Sample(images, (Turn("user", question), Turn("assistant", answer)), *label, row.source)]

    return reading.each(_rows(root, split, reading), convert, root)


def _rows(root: Path | str, split: str, reading: Reading) -> Iterator[Row]:
    """The rows of all categories; on the hub each is a configuration of its own."""
    if hub.on_hub(root):
        return chain.from_iterable(hub.rows(root, split, config=name, first=reading.stream) for name in LABELS)
    return hub.rows(root, split, (f"*/{split}-*.parquet", f"{split}-*.parquet", f"data/{split}-*.parquet"))


def _safe_answer(cells: dict[str, object]) -> str:
    """An answer that was judged safe, the safer one of two; "" where there is none."""
    order = ["", "_1", "_2"] if str(cells.get("safer_response_id")) != "2" else ["", "_2", "_1"]
    for end in order:
        if str(cells.get(f"is_response{end}_safe")).strip().lower() in ("yes", "true", "1", "safe"):
            return files.text(cells, f"response{end}")
    return ""
