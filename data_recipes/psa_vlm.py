"""PSA-VLM's own rows: LLaVA-like conversations with a safety type and level, as its authors released them.

Layout of the root: the jsonl file itself, with the images below its folder; or a folder with `train.jsonl`,
`test.jsonl`. A row is `safe_type, safe_level, image, conversations: [{"from": "USER" | "ASSISTANT", "value"}]`;
`<image>` may be missing from the text, as it is in one of the released files.

Labels: types 0 to 5 in the order of the paper's categories, 6 is clean. The release has rows of a risky type with
level 0, and clean ones with a level: they contradict themselves and are an error (`bad_rows: skip` leaves them out
and counts them).
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import conversations, files
from data_recipes.readers.table_row import TableRow, short_repr
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="PSA-VLM's training rows",
    published="the authors' repository",
    licence="none stated",
    splits=("train", "test"),
    paper="2411.11543",
    carve="train",
)
TYPES = ("politics", "illegal", "insults", "fairness", "privacy", "misleading", CLEAN)
# the level is the row's own, except under a label of the user's
LABELS = {str(number): (name, 0 if name == CLEAN else 2) for number, name in enumerate(TYPES)}


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """The conversations with their labels."""
    table = root if root.is_file() else files.find(root, f"{split}.jsonl", f"{split}.json")

    def convert(row: TableRow) -> list[Sample]:
        images = tuple(files.image_path(table.parent, name) for name in row.image_names("image"))
        turns = conversations.turns(row.cells.get("conversations"), len(images))
        category, level = str(row.cells.get("safe_type")), row.cells.get("safe_level")
        if isinstance(level, bool) or not isinstance(level, int):
            raise DataError(f"safe_level {short_repr(level)} must be a whole number")
        risk_type, own_level = reader.label(LABELS, category)
        return [Sample(images, turns, risk_type, own_level if category in reader.labels else level, row.source)]

    return reader.convert_rows(files.read_rows(table), convert, table)
