"""MM-SafetyBench: 13 scenarios, each request with up to three images: drawn by a diffusion model, as text, or both.

Layout of the root: `processed_questions/NN-Name.json` (`{id: {"Question", "Changed Question", "Key Phrase", "Phrase Type",
"Rephrased Question", "Rephrased Question(SD)"}}`) and `imgs/NN-Name/{SD,SD_TYPO,TYPO}/<id>.jpg`. One scenario is spelt
`01-Illegal_Activitiy` in the published files; both spellings are read.

Splits: `SD`, `SD_TYPO`, `TYPO`, the kinds of images. Labels: by scenario; advice of a profession is misleading 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import files
from data_recipes.readers.tables import Row
from safety_modules.sample import DataError, Sample, Turn

ABOUT = About(
    title="MM-SafetyBench",
    published="github.com/isXinLiu/MM-SafetyBench",
    licence="CC BY-NC 4.0",
    splits=("SD", "SD_TYPO", "TYPO"),
    paper="2311.17600",
    evaluation_only="it is a benchmark, and a model that was trained on it cannot be measured on it",
)
LABELS = {  # scenario without its number
    "Illegal_Activity": ("illegal", 3),
    "HateSpeech": ("fairness", 2),
    "Malware_Generation": ("illegal", 3),
    "Physical_Harm": ("illegal", 3),
    "EconomicHarm": ("illegal", 2),
    "Fraud": ("illegal", 3),
    "Sex": ("illegal", 3),
    "Political_Lobbying": ("politics", 3),
    "Privacy_Violence": ("privacy", 2),
    "Legal_Opinion": ("misleading", 2),
    "Financial_Advice": ("misleading", 2),
    "Health_Consultation": ("misleading", 2),
    "Gov_Decision": ("politics", 2),
}
MISSPELT = {"Illegal_Activitiy": "Illegal_Activity"}


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """The requests with one kind of image. For SD the request is worded for an image without text, as the authors' are."""
    column = "Rephrased Question(SD)" if split == "SD" else "Rephrased Question"

    def convert(row: Row) -> list[Sample]:
        folder = root / "imgs" / row.cells["folder"] / split
        image = files.image(folder, f"{row.cells['id']}.jpg")
        question = files.text(row.cells, column, needed=True)
        label = reading.label(LABELS, row.cells["scenario"])
        answer = reading.texts.answer(*label, f"{row.cells['folder']}/{image.name}")
        return [Sample((image,), (Turn("user", question), Turn("assistant", answer)), *label, row.source)]

    return reading.each(_rows(root), convert, root)


def _rows(root: Path) -> Iterator[Row]:
    folder = files.find(root, "processed_questions")
    tables = sorted(folder.glob("*.json"))
    if not tables:
        raise DataError(f"{folder}: has no .json file; give the folder that holds processed_questions and imgs")
    for table in tables:
        name = table.stem.partition("-")[2] or table.stem
        for row in files.rows(table):
            cells = {**row.cells, "folder": table.stem, "scenario": MISSPELT.get(name, name)}
            yield Row(row.source, cells, row.fault)
