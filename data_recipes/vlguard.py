"""VLGuard: safe and unsafe images; each safe one with a harmless and a harmful instruction.

Layout of the root: `train.json` and `test.json` (`id, image, safe, harmful_category, harmful_subcategory,
instr-resp`), with the images in `train/` and `test/`, as in the hub's archives, or beside the files.

Labels: by subcategory. A safe image's harmless instruction is clean. Its harmful one is an unsafe exchange although
the row has `safe: true`: its label is that of its category where the row names one, else illegal 2.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.core.rows import Label
from data_recipes.readers import conversations, files
from data_recipes.readers.recipe import exchange, label_map
from data_recipes.readers.table_row import TableRow, is_empty, short_repr
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="VLGuard",
    published="hub: ys-zong/VLGuard",
    licence="none named; for research purposes only, on request, says its card",
    splits=("train", "test"),
    paper="2402.02207",
    carve="train",
)
INSTRUCTIONS = ("instruction", "safe_instruction", "unsafe_instruction")  # the first for unsafe images
UNSAFE_TEXT = "unsafe instruction"
# harmful_subcategory, in lower case
LABELS = label_map("""
    politics:3    political
    illegal:3     sexually explicit
    illegal:2     unsafe instruction
    insults:2     violence
    fairness:2    race | sex | other
    privacy:2     personal data
    misleading:2  professional advice | disinformation
""")


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """One sample for an unsafe image, two for a safe one."""
    table = files.find(root, f"{split}.json")
    folder = root / split if (root / split).is_dir() else root

    def convert(row: TableRow) -> list[Sample]:
        image = files.image_path(folder, row.cells.get("image"))
        safe, pairs = row.cells.get("safe"), row.cells.get("instr-resp")
        is_list = isinstance(pairs, list) and pairs and all(isinstance(pair, dict) for pair in pairs)
        if not isinstance(safe, bool) or not is_list:
            raise DataError(
                f"safe {short_repr(safe)} must be true or false, and instr-resp {short_repr(pairs)} a list of exchanges"
            )
        exchanges = (TableRow(f"{row.source}/{n}", {**row.cells, **pair}) for n, pair in enumerate(pairs, start=1))
        return [_sample(exchange_row, image, reader) for exchange_row in exchanges]

    return reader.convert_rows(files.read_rows(table), convert, table)


def _sample(row: TableRow, image: Path, reader: RowReader) -> Sample:
    """The sample of one instruction and its response, from the row's cells and theirs."""
    key = next((key for key in INSTRUCTIONS if key in row.cells), None)
    if key is None or (key == "instruction") == row.cells["safe"]:
        raise DataError(f"instr-resp {short_repr(row.cells['instr-resp'])} does not go with safe {row.cells['safe']}")
    label = _label(row, key, reader)
    question = row.text(key, needed=True)
    answer = conversations.without_placeholders(row.text("response", needed=True), 1)
    return exchange(row, [image], question, answer, label)


def _label(row: TableRow, key: str, reader: RowReader) -> Label:
    if key == "safe_instruction":
        return (CLEAN, 0)
    category = row.cells.get("harmful_subcategory")
    if is_empty(category) and key == "unsafe_instruction":
        return reader.label(LABELS, UNSAFE_TEXT)
    return reader.label(LABELS, str(category).strip().lower())
