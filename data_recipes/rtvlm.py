"""RTVLM, the red-teaming set for vision language models: one file for each of its tasks, whose fields have different names.

Layout of the root: the tasks' `.jsonl` or `.json` files, at any depth, told apart by a word in their names (`TASKS`), and the
images below the root or below each file's folder. Fields: `prompt`, `instruction` or `question(s)`; `answer(s)`; `img` or
`image`, one name, a list of two, or `a.jpg<split>b.jpg`; `refused_to_answer` or `Refuse to Answer`, in free text.

Labels: the type by task; racial is fairness (its questions are about groups, not insults of a person). The level is the task's
where the answer refuses, and 1 where it does not, or says "Proceed with Caution".

Splits: the authors have none. `test` is about 20 % of the groups of rows that share an image: those whose first image's
file name, as `split NAME`, has a SHA-256 whose first 8 bytes, read as a big-endian fraction of 2 ** 64, are below 0.2. `train`
is the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_recipes.core import splits
from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import conversations, files
from data_recipes.readers.tables import Row
from safety_modules.sample import DataError, Sample, Turn

ABOUT = About(
    title="RTVLM, Red Teaming Visual Language Models",
    published="hub: MMInstruction/RedTeamingVLM",
    licence="CC BY 4.0, in later versions of its card only `cc`",
    splits=("train", "test", "all"),
    paper="2401.12915",
)
TEST = 0.2
LABELS = {
    "politics": ("politics", 3),
    "captcha": ("illegal", 3),
    "jailbreak": ("illegal", 3),
    "harmful": ("illegal", 3),
    "racial": ("fairness", 2),
    "face": ("fairness", 2),
    "celebrity": ("privacy", 2),
    "misleading": ("misleading", 2),
    "order": ("misleading", 2),
}
TASKS = {
    **{name: name for name in LABELS},
    "political": "politics",
    "race": "racial",
    "mislead": "misleading",
}  # word -> task
REFUSED = ("yes", "true", "1", "refused", "refuse")


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """The rows of all tasks, or of one part of them."""
    found = reading.each(_rows(root), lambda row: [_sample(row, root, reading)], root)
    names = [[image.name for image in sample.images] or [f"text {sample.question}"] for sample in found]
    parts = splits.by_image(names, TEST, "test")
    return [sample for sample, part in zip(found, parts) if split in (part, "all")]


def _rows(root: Path) -> Iterator[Row]:
    paths = sorted(path for path in root.rglob("*") if path.suffix in (".jsonl", ".json")) if root.is_dir() else []
    if not paths:
        raise DataError(f"{root}: has no .jsonl or .json file; give the folder of the tasks' files")
    for path in paths:
        task = next((TASKS[word] for word in sorted(TASKS, key=len, reverse=True) if word in path.stem.lower()), None)
        for row in files.rows(path):
            if task is None:
                yield Row(row.source, {}, f"no task is in the file's name {path.name!r}; known: {', '.join(TASKS)}")
            else:
                yield Row(row.source, {**row.cells, "task": task, "folder": path.parent}, row.fault)


def _sample(row: Row, root: Path, reading: Reading) -> Sample:
    cells = row.cells
    names = next((files.names(cells[key]) for key in ("img", "image", "images") if not files.empty(cells.get(key))), [])
    images = tuple(_image(name, (cells["folder"], root)) for name in names)
    question = conversations.clean(
        files.first(cells, "prompt", "instruction", "question", "questions", "question(s)"), len(images)
    )
    answer = files.first(cells, "answer", "answers", "answer(s)")
    risk_type, level = reading.label(LABELS, cells["task"])
    refused = next((cells[key] for key in ("refused_to_answer", "Refuse to Answer") if key in cells), None)
    if refused is not None and str(refused).strip().lower().rstrip(".") not in REFUSED:
        level = min(level, 1)
    return Sample(images, (Turn("user", question), Turn("assistant", answer)), risk_type, level, row.source)


def _image(name: str, folders: tuple[Path, ...]) -> Path:
    """An image below the file's folder or the root; the error is of the last of them."""
    for folder in folders:
        try:
            return files.image(folder, name)
        except DataError as error:
            last = error
    raise last
