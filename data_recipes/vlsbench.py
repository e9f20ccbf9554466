"""VLSBench: harmful requests whose harm is in the image alone, so that the text does not give it away.

Layout of the root: `data.json` (a list of rows `instruction, image_path, category, sub_category, ...`) and the images at
that path below the root, or below `imgs/`; or hf://datasets/Foreshhh/vlsbench, or a folder with its Parquet files (`image` in
place of `image_path`).

Labels: by category. Self-harm has no type of its own in the default taxonomy: it is illegal 2 here.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import conversations, files, hub
from data_recipes.readers.tables import Row
from safety_modules.sample import Sample, Turn

ABOUT = About(
    title="VLSBench",
    published="hub: Foreshhh/vlsbench",
    licence="Apache-2.0; some images are UnsafeBench's, which are for research only",
    splits=("train",),  # the hub's name of its only split
    paper="2411.19939",
    evaluation_only="it is a benchmark, and a model that was trained on it cannot be measured on it",
)
LABELS = {
    "Erotic": ("illegal", 3),
    "Erotic Content": ("illegal", 3),
    "Hate": ("fairness", 2),
    "Hate Speech": ("fairness", 2),
    "Illegal Activity": ("illegal", 3),
    "Privacy": ("privacy", 2),
    "Privacy Violation": ("privacy", 2),
    "Self-Harm": ("illegal", 2),
    "Violent": ("insults", 2),
    "Violence": ("insults", 2),
}


def samples(root: Path | str, split: str, reading: Reading) -> list[Sample]:
    """The requests, with composed answers."""
    table = None if hub.on_hub(root) or not (root / "data.json").is_file() else root / "data.json"

    def convert(row: Row) -> list[Sample]:
        if table is None:
            images = hub.images(row.cells, "image")
        else:
            name = files.first(row.cells, "image_path", "image")
            images = (files.image(root if (root / name).is_file() else root / "imgs", name),)
        question = conversations.clean(files.text(row.cells, "instruction", needed=True), 1)
        label = reading.label(LABELS, row.cells.get("category"))
        answer = reading.texts.answer(*label, row.source)
        return [Sample(images, (Turn("user", question), Turn("assistant", answer)), *label, row.source)]

    rows = files.rows(table) if table else hub.rows(root, split, first=reading.stream)
    return reading.each(rows, convert, table or root)
