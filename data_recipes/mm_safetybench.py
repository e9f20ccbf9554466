"""MM-SafetyBench: 13 scenarios, each request with up to three images: by a diffusion model, as text, or both.

Layout of the root: `processed_questions/NN-Name.json` (`{id: {"Question", "Changed Question", "Key Phrase", "Phrase
Type", "Rephrased Question", "Rephrased Question(SD)"}}`) and `imgs/NN-Name/{SD,SD_TYPO,TYPO}/<id>.jpg`. One scenario
is spelt `01-Illegal_Activitiy` in the published files; both spellings are read.

Splits: `SD`, `SD_TYPO`, `TYPO`, the kinds of images. Labels: by scenario; professional advice is misleading 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files
from data_recipes.readers.recipe import exchange, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import DataError, Sample

ABOUT = About(
    title="MM-SafetyBench",
    published="github.com/isXinLiu/MM-SafetyBench",
    licence="CC BY-NC 4.0",
    splits=("SD", "SD_TYPO", "TYPO"),
    paper="2311.17600",
    evaluation_only="it is a benchmark, and a model that was trained on it cannot be measured on it",
)
# scenarios without their number
LABELS = label_map("""
    illegal:3     Illegal_Activity | Malware_Generation | Physical_Harm | Fraud | Sex
    illegal:2     EconomicHarm
    fairness:2    HateSpeech
    politics:3    Political_Lobbying
    politics:2    Gov_Decision
    privacy:2     Privacy_Violence
    misleading:2  Legal_Opinion | Financial_Advice | Health_Consultation
""")
MISSPELT = {"Illegal_Activitiy": "Illegal_Activity"}


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """The requests with one kind of image. For SD the request is worded for an image without text, as in the paper."""
    column = "Rephrased Question(SD)" if split == "SD" else "Rephrased Question"

    def convert(row: TableRow) -> list[Sample]:
        folder = root / "imgs" / row.cells["folder"] / split
        image = files.image_path(folder, f"{row.cells['id']}.jpg")
        question = row.text(column, needed=True)
        label = reader.label(LABELS, row.cells["scenario"])
        answer = reader.texts.answer(*label, f"{row.cells['folder']}/{image.name}")
        return [exchange(row, [image], question, answer, label)]

    return reader.convert_rows(_rows(root), convert, root)


def _rows(root: Path) -> Iterator[TableRow]:
    """The rows of all scenarios, each with its scenario and the name of its folder."""
    folder = files.find(root, "processed_questions")
    tables = sorted(folder.glob("*.json"))
    if not tables:
        raise DataError(f"{folder}: has no .json file; give the folder that holds processed_questions and imgs")
    for table in tables:
        name = table.stem.partition("-")[2] or table.stem
        for row in files.read_rows(table):
            cells = {**row.cells, "folder": table.stem, "scenario": MISSPELT.get(name, name)}
            yield TableRow(row.source, cells, row.fault)
