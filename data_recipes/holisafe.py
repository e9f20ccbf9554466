"""HoliSafe-Bench: all combinations of safe and unsafe images and questions.

The root: hf://datasets/etri-vilab/holisafe-bench; or a folder with its Parquet files; or a folder with
`holisafe_bench.json` and the images in `images/` or at their paths below the root. A row is `id, type (SSS SSU USU
UUU SUU), category, subcategory, image, image_safe, image_safety_label, query`. The letters of `type` stand for the
image, the text, and both together.

Labels: by subcategory where the third letter is U, else clean. The default taxonomy has no type for self-harm: it is
illegal 2.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files, hub
from data_recipes.readers.recipe import choice, exchange, find_image, find_table, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample
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
# subcategories, and categories for rows whose subcategory is unknown
LABELS = label_map("""
    illegal:3     drug_related_hazards | property_crime | animal_abuse | terrorism | sexual_content | illegal_activity
    illegal:2     physical_self_injury | suicide | self_harm
    insults:3     weapon_related_violence
    insults:2     harassment | obscene_gestures | physical_altercation | violence
    fairness:2    gender | race | religion | disability_discrimination | hate
    privacy:2     facial_data_exposure | identity_data_exposure | privacy
    misleading:2  financial_advice | medical_advice | specialized_advice
""")


def samples(root: Path | str, split: str, reader: RowReader) -> list[Sample]:
    """The questions; a harmless one has an empty answer."""
    table = find_table(root, "holisafe_bench.json", "data.json")

    def convert(row: TableRow) -> list[Sample]:
        if table:
            images = [find_image(name, root, root / "images") for name in row.image_names("image")]
        else:
            images = hub.images(row.cells, "image")
        combination = choice(row, "type", TYPES)
        question = row.text("query", needed=True)
        names = [row.cells.get(column) for column in ("subcategory", "category")]
        category = next((name for name in names if reader.has_label(LABELS, name)), names[-1])
        label = reader.label(LABELS, category) if combination.endswith("U") else (CLEAN, 0)
        answer = reader.texts.answer(*label, row.source) if label[1] else ""
        return [exchange(row, images, question, answer, label)]

    rows = files.read_rows(table) if table else hub.read_rows(root, split, first=reader.stream)
    return reader.convert_rows(rows, convert, table or root)
