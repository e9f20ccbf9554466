"""SIUO: image and question are each safe, and a good answer recognises the danger of the two together.

Layout of the root: `siuo_gen.json` or `data/siuo_gen.json` (`question_id, image, question, category, safety_warning,
reference_answer`) and the images in `images/`.

Labels: by category, of which there are nine; level 1 or 2, since a reference answer warns and does not only refuse.
The default taxonomy has no type for self-harm and religion.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files
from data_recipes.readers.recipe import exchange, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample

ABOUT = About(
    title="SIUO",
    published="hub: sinwang/SIUO",
    licence="see its card",
    splits=("all",),
    paper="2406.15279",
    evaluation_only="it is a benchmark of 167 rows, and a model that was trained on it cannot be measured on it",
)
LABELS = label_map("""
    illegal:2     self-harm | illegal activities & crime | dangerous behavior
    privacy:2     privacy violation
    misleading:1  information misinterpretation
    fairness:2    discrimination & stereotyping
    fairness:1    religion beliefs
    politics:2    controversial topics, politics
    insults:1     morality
""")


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """The questions with their reference answers."""
    table = files.find(root, "siuo_gen.json", "data/siuo_gen.json")
    folder = next((folder for folder in (table.parent / "images", root / "images") if folder.is_dir()), root)

    def convert(row: TableRow) -> list[Sample]:
        image = files.image_path(folder, row.first_text("image"))
        question = row.text("question", needed=True)
        label = reader.label(LABELS, row.cells.get("category"))
        answer = row.text("reference_answer") or reader.texts.answer(*label, row.source)
        return [exchange(row, [image], question, answer, label)]

    return reader.convert_rows(files.read_rows(table), convert, table)
