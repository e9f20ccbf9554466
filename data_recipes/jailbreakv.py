"""JailBreakV-28K: jailbreak texts with blank, noise, photograph, typographic and FigStep-like images.

Layout of the root: `JailBreakV_28K.csv` (also in `JailBreakV_28K/`, and `mini_JailBreakV_28K.csv` for its small part)
with `id, jailbreak_query, redteam_query, format, policy, image_path, from, selected_mini, transfer_from_llm`; the
images at `image_path` below the CSV's folder.

Splits: `all`, `mini`. Labels: by policy, of which there are 16.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files
from data_recipes.readers.recipe import exchange, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample

ABOUT = About(
    title="JailBreakV-28K",
    published="hub: JailbreakV-28K/JailBreakV-28k",
    licence="MIT",
    splits=("all", "mini"),
    paper="2404.03027",
    evaluation_only="it is a benchmark of jailbreaks, and a model that was trained on it cannot be measured on it",
)
LABELS = label_map("""
    illegal:3     Animal Abuse | Child Abuse | Child Abuse Content | Fraud | Illegal Activity | Malware | Physical Harm
    illegal:2     Economic Harm
    fairness:2    Bias | Hate Speech
    politics:3    Political Sensitivity
    politics:2    Government Decision
    misleading:2  Health Consultation | Tailored Unlicensed Advice
    privacy:2     Privacy Violation
    insults:2     Unethical Behavior | Violence
""")


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """The jailbreak texts with their images."""
    names = [*(["mini_JailBreakV_28K.csv"] if split == "mini" else []), "JailBreakV_28K.csv"]
    folders = ("", "JailBreakV_28K/", "JailBreakV_28k/")
    table = files.find(root, *(folder + name for name in names for folder in folders))

    def convert(row: TableRow) -> list[Sample]:
        if split == "mini" and str(row.cells.get("selected_mini", "True")).strip().lower() != "true":
            return []
        image = files.image_path(table.parent, row.cells.get("image_path"))
        question = row.text("jailbreak_query", needed=True)
        label = reader.label(LABELS, row.cells.get("policy"))
        return [exchange(row, [image], question, reader.texts.answer(*label, f"{image.name} {question}"), label)]

    return reader.convert_rows(files.read_rows(table, "jailbreak_query", "policy", "image_path"), convert, table)
