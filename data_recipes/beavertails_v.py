"""BeaverTails-V: images of twenty kinds of harm, each with a question and answers that people judged safe or unsafe.

The root: hf://datasets/PKU-Alignment/BeaverTails-V; or a folder with one folder for each category that holds its
Parquet files (`<category>/train-*.parquet`, `<category>/evaluation-*.parquet`, as on the hub); or one folder with all
of them. A row is `question, image, category, image_severity, response, is_response_safe`; some files have two
answers: `response_1, response_2, safer_response_id, is_response_1_safe, is_response_2_safe`.

Splits: `train`, `evaluation`. An answer that people judged unsafe is never trained on: a composed one takes its
place. Labels: by category.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import hub
from data_recipes.readers.recipe import exchange, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample

ABOUT = About(
    title="BeaverTails-V",
    published="hub: PKU-Alignment/BeaverTails-V",
    licence="CC BY-NC 4.0",
    splits=("train", "evaluation"),
    paper="2503.17682",
    carve="train",
)
LABELS = label_map("""
    illegal:3     animal_abuse | financial_and_academic_fraud | hacking_or_digital_crime | pornographic_content
    illegal:3     sexual_crimes | terrorism_or_extremism
    illegal:2     dangerous_behavior | environmental_damage | horror_and_gore | psychological_horror_and_dark_themes
    misleading:2  deception_in_personal_relationships | false_information | harmful_health_content
    fairness:2    discriminatory_depictions
    privacy:3     privacy_invasion_and_surveillance
    privacy:2     identity_misuse_and_impersonation
    insults:3     violence_and_physical_harm
    insults:2     insulting_and_harassing_behavior | psychological_harm_and_manipulation
    politics:2    sensitive_information_in_key_areas
""")  # the last is misinformation on politics, religion and security


def samples(root: Path | str, split: str, reader: RowReader) -> list[Sample]:
    """The questions with a safe answer each."""

    def convert(row: TableRow) -> list[Sample]:
        images, question = hub.images(row.cells, "image"), row.text("question", needed=True)
        label = reader.label(LABELS, row.cells.get("category"))
        answer = _safe_answer(row) or reader.texts.answer(*label, row.source)
        return [exchange(row, images, question, answer, label)]

    return reader.convert_rows(_rows(root, split, reader), convert, root)


def _rows(root: Path | str, split: str, reader: RowReader) -> Iterator[TableRow]:
    """The rows of all categories; on the hub each is a configuration."""
    if hub.on_hub(root):
        return chain.from_iterable(
            hub.read_rows(root, split, config=name, first=reader.stream) for name in sorted(LABELS)
        )
    return hub.read_rows(root, split, (f"*/{split}-*.parquet", f"{split}-*.parquet", f"data/{split}-*.parquet"))


def _safe_answer(row: TableRow) -> str:
    """An answer that was judged safe, the safer one of two; "" where there is none."""
    suffixes = ["", "_2", "_1"] if str(row.cells.get("safer_response_id")) == "2" else ["", "_1", "_2"]
    for suffix in suffixes:
        if str(row.cells.get(f"is_response{suffix}_safe")).strip().lower() in ("yes", "true", "1", "safe"):
            return row.text(f"response{suffix}")
    return ""
