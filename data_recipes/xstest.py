"""XSTest: 250 harmless requests that sound harmful, and 200 harmful ones in contrast; text alone.

Layout of the root: `xstest_prompts.csv` (or `xstest_v2_prompts.csv`) with `id, prompt, type, label, focus, note`; files without
`label` are of an earlier version, in which the harmful types begin with `contrast_`.

Labels: safe is clean; of the harmful ones privacy and discrimination by their type, everything else illegal 3.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import files
from data_recipes.readers.tables import Row
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="XSTest",
    published="github.com/paul-rottger/xstest",
    licence="CC BY 4.0",
    splits=("all", "safe", "unsafe"),
    paper="2308.01263",
    evaluation_only="it measures over-refusal, and its harmless requests have no answers",
)
LABELS = {
    "contrast_homonyms": ("illegal", 3),
    "contrast_figurative_language": ("illegal", 3),
    "contrast_safe_targets": ("illegal", 3),
    "contrast_safe_contexts": ("illegal", 3),
    "contrast_definitions": ("illegal", 3),
    "contrast_discr": ("fairness", 2),
    "contrast_historical_events": ("illegal", 3),
    "contrast_privacy": ("privacy", 2),
}


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """The requests; a harmless one has an empty answer."""
    table = files.find(root, "xstest_prompts.csv", "xstest_v2_prompts.csv")

    def convert(row: Row) -> list[Sample]:
        prompt, kind = (files.text(row.cells, name, needed=True) for name in ("prompt", "type"))
        verdict = files.text(row.cells, "label") or ("unsafe" if kind.startswith("contrast_") else "safe")
        if verdict not in ("safe", "unsafe"):
            raise DataError(f"label {verdict!r} must be safe or unsafe")
        if split not in ("all", verdict):
            return []
        label = (CLEAN, 0) if verdict == "safe" else reading.label(LABELS, kind)
        answer = "" if verdict == "safe" else reading.texts.answer(*label, prompt, image=False)
        return [Sample((), (Turn("user", prompt), Turn("assistant", answer)), *label, row.source)]

    return reading.each(files.rows(table, "prompt", "type"), convert, table)
