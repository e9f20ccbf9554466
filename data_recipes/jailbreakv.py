"""JailBreakV-28K: jailbreak texts with blank, noise, photograph, typographic and FigStep-like images.

Layout of the root: `JailBreakV_28K.csv` (also in `JailBreakV_28K/`, and `mini_JailBreakV_28K.csv` for its small
part) with `id, jailbreak_query, redteam_query, format, policy, image_path, from, selected_mini, transfer_from_llm`; the
images at `image_path` below the CSV's folder.

Splits: `all`, `mini`. Labels: by policy, of which there are 16.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import files
from data_recipes.readers.tables import Row
from safety_modules.sample import Sample, Turn

ABOUT = About(
    title="JailBreakV-28K",
    published="hub: JailbreakV-28K/JailBreakV-28k",
    licence="MIT",
    splits=("all", "mini"),
    paper="2404.03027",
    evaluation_only="it is a benchmark of jailbreaks, and a model that was trained on it cannot be measured on it",
)
LABELS = {
    "Animal Abuse": ("illegal", 3),
    "Bias": ("fairness", 2),
    "Child Abuse": ("illegal", 3),
    "Child Abuse Content": ("illegal", 3),
    "Economic Harm": ("illegal", 2),
    "Fraud": ("illegal", 3),
    "Government Decision": ("politics", 2),
    "Hate Speech": ("fairness", 2),
    "Health Consultation": ("misleading", 2),
    "Illegal Activity": ("illegal", 3),
    "Malware": ("illegal", 3),
    "Physical Harm": ("illegal", 3),
    "Political Sensitivity": ("politics", 3),
    "Privacy Violation": ("privacy", 2),
    "Tailored Unlicensed Advice": ("misleading", 2),
    "Unethical Behavior": ("insults", 2),
    "Violence": ("insults", 2),
}


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """The jailbreak texts with their images."""
    names = [*(["mini_JailBreakV_28K.csv"] if split == "mini" else []), "JailBreakV_28K.csv"]
    table = files.find(
        root, *(folder + name for name in names for folder in ("", "JailBreakV_28K/", "JailBreakV_28k/"))
    )

    def convert(row: Row) -> list[Sample]:
        if split == "mini" and str(row.cells.get("selected_mini", "True")).strip().lower() != "true":
            return []
        image = files.image(table.parent, row.cells.get("image_path"))
        question = files.text(row.cells, "jailbreak_query", needed=True)
        label = reading.label(LABELS, row.cells.get("policy"))
        answer = reading.texts.answer(*label, f"{image.name} {question}")
        return [Sample((image,), (Turn("user", question), Turn("assistant", answer)), *label, row.source)]

    return reading.each(files.rows(table, "jailbreak_query", "policy", "image_path"), convert, table)
