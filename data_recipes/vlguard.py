"""VLGuard: safe and unsafe images; each safe one with a harmless and a harmful instruction.

Layout of the root: `train.json` and `test.json` (`id, image, safe, harmful_category, harmful_subcategory, instr-resp`), with
the images in `train/` and `test/`, as the hub's archives unpack, or beside the files.

Labels: by subcategory. A safe image's harmless instruction is clean. Its harmful one is an unsafe exchange in spite of
`safe: true`: its label is the category of its request where the row names one, else illegal 2.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.core.rows import Label
from data_recipes.readers import conversations, files
from data_recipes.readers.tables import Row, shown
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="VLGuard",
    published="hub: ys-zong/VLGuard",
    licence="none named; for research purposes only, on request, says its card",
    splits=("train", "test"),
    paper="2402.02207",
    carve="train",
)
UNSAFE_TEXT = "unsafe instruction"
LABELS = {  # harmful_subcategory, in small letters -> label
    "political": ("politics", 3),
    "sexually explicit": ("illegal", 3),
    "violence": ("insults", 2),
    "race": ("fairness", 2),
    "sex": ("fairness", 2),
    "other": ("fairness", 2),
    "personal data": ("privacy", 2),
    "professional advice": ("misleading", 2),
    "disinformation": ("misleading", 2),
    UNSAFE_TEXT: ("illegal", 2),
}


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """One sample for an unsafe image, two for a safe one."""
    table = files.find(root, f"{split}.json")
    folder = root / split if (root / split).is_dir() else root

    def convert(row: Row) -> list[Sample]:
        image = files.image(folder, row.cells.get("image"))
        safe, exchanges = row.cells.get("safe"), row.cells.get("instr-resp")
        if not isinstance(safe, bool) or not isinstance(exchanges, list) or not exchanges:
            raise DataError(
                f"safe {shown(safe)} must be true or false, and instr-resp {shown(exchanges)} a list of exchanges"
            )
        found = []
        for number, exchange in enumerate(exchanges):
            key = next(
                (key for key in ("instruction", "safe_instruction", "unsafe_instruction") if key in exchange), None
            )
            if key is None or (key == "instruction") == safe:
                raise DataError(f"instr-resp {shown(exchange)} does not go with safe {safe}")
            label = _label(row, key, reading)
            turns = tuple(
                Turn(role, conversations.clean(files.text(exchange, name, needed=True), 1))
                for role, name in (("user", key), ("assistant", "response"))
            )
            found.append(Sample((image,), turns, *label, f"{row.source}/{number + 1}"))
        return found

    return reading.each(files.rows(table), convert, table)


def _label(row: Row, key: str, reading: Reading) -> Label:
    if key == "safe_instruction":
        return (CLEAN, 0)
    category = row.cells.get("harmful_subcategory")
    if files.empty(category) and key == "unsafe_instruction":
        return reading.label(LABELS, UNSAFE_TEXT)
    return reading.label(LABELS, str(category).strip().lower())
