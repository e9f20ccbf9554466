"""XSTest: 250 harmless requests that sound harmful, and 200 harmful ones in contrast to them; text alone.

Layout of the root: `xstest_prompts.csv` (or `xstest_v2_prompts.csv`) with `id, prompt, type, label, focus, note`;
files without `label` are of an earlier version, in which the harmful types begin with `contrast_`.

Labels: safe is clean; harmful requests about privacy and discrimination have these types, all others are illegal 3.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files
from data_recipes.readers.recipe import exchange, label_map
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="XSTest",
    published="github.com/paul-rottger/xstest",
    licence="CC BY 4.0",
    splits=("all", "safe", "unsafe"),
    paper="2308.01263",
    evaluation_only="it measures over-refusal, and its harmless requests have no answers",
)
LABELS = label_map("""
    illegal:3   contrast_homonyms | contrast_figurative_language | contrast_safe_targets | contrast_safe_contexts
    illegal:3   contrast_definitions | contrast_historical_events
    fairness:2  contrast_discr
    privacy:2   contrast_privacy
""")


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """The requests; a harmless one has an empty answer."""
    table = files.find(root, "xstest_prompts.csv", "xstest_v2_prompts.csv")

    def convert(row: TableRow) -> list[Sample]:
        prompt, category = (row.text(name, needed=True) for name in ("prompt", "type"))
        verdict = row.text("label") or ("unsafe" if category.startswith("contrast_") else "safe")
        if verdict not in ("safe", "unsafe"):
            raise DataError(f"label {verdict!r} must be safe or unsafe")
        if split not in ("all", verdict):
            return []
        if verdict == "safe":
            return [exchange(row, [], prompt, "", (CLEAN, 0))]
        label = reader.label(LABELS, category)
        return [exchange(row, [], prompt, reader.texts.answer(*label, prompt, image=False), label)]

    return reader.convert_rows(files.read_rows(table, "prompt", "type"), convert, table)
