"""PSA-VLM's own rows: LLaVA-like conversations with a safety type and level, as its authors released them.

Layout of the root: the jsonl file itself, with the images below its folder; or a folder with `train.jsonl`, `test.jsonl`. A
row is `safe_type, safe_level, image, conversations: [{"from": "USER" | "ASSISTANT", "value"}]`; one released file has no
`<image>` in any of its rows, which makes no difference here.

Labels: types 0 to 5 in the order of the paper's categories, 6 is clean. The release holds rows with a type and level 0, and
clean ones with a level: they contradict each other and are refused (`bad_rows: skip` leaves them out and counts them).
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import conversations, files
from data_recipes.readers.tables import Row, shown
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
LABELS = {
    str(number): (name, 0 if name == CLEAN else 2) for number, name in enumerate(TYPES)
}  # the level is the row's own


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """The conversations with their labels."""
    table = root if root.is_file() else files.find(root, f"{split}.jsonl", f"{split}.json")
    folder = table.parent

    def convert(row: Row) -> list[Sample]:
        images = tuple(files.image(folder, name) for name in files.names(row.cells.get("image")))
        turns = conversations.turns(row.cells.get("conversations"), len(images))
        kind, level = row.cells.get("safe_type"), row.cells.get("safe_level")
        if isinstance(level, bool) or not isinstance(level, int):
            raise DataError(f"safe_level {shown(level)} must be a whole number")
        name = str(kind)
        risk_type, own = reading.label(LABELS, name)
        return [Sample(images, turns, risk_type, own if name in reading.labels else level, row.source)]

    return reading.each(files.rows(table), convert, table)
