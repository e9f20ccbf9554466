"""Custom: the user's own images, labelled in a table or by the folders they lie in. Described in docs/your-data.md."""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.core.splits import by_image
from data_recipes.readers import files, layouts, tables
from data_recipes.readers.tables import Row, shown
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import Taxonomy, nearest

ABOUT = About(title="Your own data", published="", licence="yours", splits=())
NEEDED = ("image", "risk_type")
OPTIONAL = ("question", "answer", "risk_level", "split")
EVERY = "all"


def samples(root: str | Path, split: str, reading: Reading) -> list[Sample]:
    """The rows of a split, in the order of the table or of the file names.

    A text that a row lacks is the taxonomy's own or a composed one (`_texts`), a missing level the default of its type. All
    rows are checked, also those of other splits. Images are looked for but not opened.

    Args:
        root: a table; or a folder with the table `<split>` or else `labels` (.csv, .jsonl, .parquet); or a folder with one
            sub-folder of images per risk type.
        split: the name of a table, a value of its column `split`, or without either "train" or "validation", which are
            made by `by_image`. "all" is every row of one table or folder.

    Raises:
        DataError: no usable table or folder, an unknown split, or rows that break a rule, the first five of them.
    """
    root = Path(root)
    table = layouts.find_table(root, split)
    rows = tables.read(table, NEEDED, OPTIONAL) if table else layouts.category_rows(root, reading.taxonomy)
    folder = table.parent if table else root
    named = table.stem if table and table.stem in (split, *layouts.SPLIT_NAMES) else ""
    column = any("split" in row.cells for row in rows)

    def convert(row: Row) -> list[tuple[Sample, list[str], str]]:
        return [(*_sample(row, folder, reading), _split(row, named) if column else named)]

    read = reading.each(rows, convert, table or root)
    splits = [name for _, _, name in read] if named or column else by_image([keys for _, keys, _ in read])
    valid = [named] if named else sorted(set(splits)) if column else ["train", "validation"]
    if split not in (*valid, EVERY):
        more = "" if named or column else "; others need a column split, or a table of their name"
        raise DataError(f"{table or root}: unknown split {split!r}; {nearest(split, [*valid, EVERY])}{more}")
    return [sample for (sample, _, _), name in zip(read, splits) if split in (name, EVERY)]


def _sample(row: Row, folder: Path, reading: Reading) -> tuple[Sample, list[str]]:
    """The row's sample and the keys of its content: real paths of its images, or its question where it has none."""
    taxonomy = reading.taxonomy
    images = tuple(files.image(folder, name) for name in files.names(row.cells["image"], "|"))
    keys = [files.key(folder, image) for image in images]
    question, answer, risk_type = (files.text(row.cells, column) for column in ("question", "answer", "risk_type"))
    if not risk_type:
        raise DataError(f"risk_type is empty; {nearest('', taxonomy.type_names)}")
    if risk_type in reading.labels:
        risk_type, risk_level = reading.label({}, risk_type)
    else:
        taxonomy.type_index(risk_type)
        risk_level = _level(row.cells.get("risk_level"), risk_type, taxonomy)
    taxonomy.check(risk_type, risk_level)
    if not images and not question:
        raise DataError("has neither image nor question; fill one of them")
    content = "|".join(keys) + question
    question = question or reading.texts.question(content)
    answer = answer or reading.texts.answer(risk_type, risk_level, content, bool(images))
    turns = (Turn("user", question), Turn("assistant", answer))
    return Sample(images, turns, risk_type, risk_level, row.source), keys or [f"text {question}"]


def _level(value: object, risk_type: str, taxonomy: Taxonomy) -> int:
    """A level by number or by name; 2.0 is 2, as pandas writes a column of whole numbers with gaps."""
    if files.empty(value):
        return taxonomy.default_level(risk_type)
    if isinstance(value, str):
        if value.strip() in taxonomy.level_names:
            return taxonomy.level_names.index(value.strip())
        try:
            value = float(value)
        except ValueError as error:
            top = len(taxonomy.levels) - 1
            raise DataError(
                f"risk_level {shown(value)} must be 0..{top} or a level's name; {nearest(value, taxonomy.level_names)}"
            ) from error
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _split(row: Row, table: str) -> str:
    """The row's split; `table` is the split that the table's name stands for, if any."""
    name = files.text(row.cells, "split")
    if not name or name == EVERY:
        raise DataError(f"split {name!r} must be the name of a split; fill it in every row, or remove the column")
    if table and name != table:
        raise DataError(
            f"split {name!r} stands in a table named {table!r}; rename the table to labels, or remove the column"
        )
    return name
