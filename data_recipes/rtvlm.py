"""RTVLM, the red-teaming set for vision language models: a file for each of its tasks, with different names of fields.

Layout of the root: the tasks' `.jsonl` or `.json` files, at any depth, whose names contain a word of `TASKS`, and the
images below the root or below each file's folder. Fields: `prompt`, `instruction` or `question(s)`; `answer(s)`;
`img` or `image`: one name, a list of two, or `a.jpg<split>b.jpg`; `refused_to_answer` or `Refuse to Answer`, in free
text.

Labels: the type by task; racial is fairness (its questions are about groups, they do not insult a person). The level
is the task's where the answer refuses, and 1 where it does not, or says "Proceed with Caution".

Splits: the authors have none. `test` is about 20 % of the groups of rows that share an image: those whose first
image's file name, as `split NAME`, has a SHA-256 whose first 8 bytes, read as a big-endian fraction of 2 ** 64, are
below 0.2. `train` is the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_recipes.core import splits
from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files
from data_recipes.readers.recipe import exchange, find_image, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import DataError, Sample

ABOUT = About(
    title="RTVLM, Red Teaming Visual Language Models",
    published="hub: MMInstruction/RedTeamingVLM",
    licence="CC BY 4.0, in later versions of its card only `cc`",
    splits=("train", "test", "all"),
    paper="2401.12915",
)
TEST = 0.2
LABELS = label_map("""
    politics:3    politics
    illegal:3     captcha | jailbreak | harmful
    fairness:2    racial | face
    privacy:2     celebrity
    misleading:2  misleading | order
""")
# word in a file's name -> task
TASKS = {**{name: name for name in LABELS}, "political": "politics", "race": "racial", "mislead": "misleading"}
REFUSED = ("yes", "true", "1", "refused", "refuse")


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """The rows of all tasks, or of one part of them."""
    rows = reader.convert_rows(_rows(root), lambda row: [_sample(row, root, reader)], root)
    names = [[image.name for image in sample.images] or [f"text {sample.question}"] for sample in rows]
    row_splits = splits.split_by_image(names, TEST, "test")
    return [sample for sample, row_split in zip(rows, row_splits) if split in (row_split, "all")]


def _rows(root: Path) -> Iterator[TableRow]:
    """The rows of all files, each with its task and its file's folder."""
    paths = sorted(path for path in root.rglob("*") if path.suffix in (".jsonl", ".json")) if root.is_dir() else []
    if not paths:
        raise DataError(f"{root}: has no .jsonl or .json file; give the folder of the tasks' files")
    for path in paths:
        task = next((TASKS[word] for word in sorted(TASKS, key=len, reverse=True) if word in path.stem.lower()), None)
        for row in files.read_rows(path):
            if task is None:
                fault = (
                    f"the file's name {path.name!r} contains no task; rename it to contain one of {', '.join(TASKS)}"
                )
                yield TableRow(row.source, {}, fault)
            else:
                yield TableRow(row.source, {**row.cells, "task": task, "folder": path.parent}, row.fault)


def _sample(row: TableRow, root: Path, reader: RowReader) -> Sample:
    names = row.image_names("img", "image", "images")
    images = [find_image(name, row.cells["folder"], root) for name in names]
    question = row.first_text("prompt", "instruction", "question", "questions", "question(s)")
    answer = row.first_text("answer", "answers", "answer(s)")
    risk_type, level = reader.label(LABELS, row.cells["task"])
    refused = next((row.cells[key] for key in ("refused_to_answer", "Refuse to Answer") if key in row.cells), None)
    if refused is not None and str(refused).strip().lower().rstrip(".") not in REFUSED:
        level = min(level, 1)
    return exchange(row, images, question, answer, (risk_type, level))
