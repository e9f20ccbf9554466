"""Custom: the user's own images, labelled in a table or by their folders. See docs/your-data.md."""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.core.rows import Label
from data_recipes.core.splits import split_by_image
from data_recipes.readers import files, table_finder, tables
from data_recipes.readers.table_row import TableRow, is_empty, short_repr
from safety_modules.errors import nearest
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import Taxonomy

ABOUT = About(title="Your own data", published="", licence="yours", splits=())
NEEDED = ("image", "risk_type")
OPTIONAL = ("question", "answer", "risk_level", "split")
EVERY = "all"


def samples(root: str | Path, split: str, reader: RowReader) -> list[Sample]:
    """The rows of a split, in the order of the table or of the file names.

    A missing question or answer is one of the taxonomy's own or a composed one, a missing level the default of its
    type. All rows are checked, also those of other splits. Images must exist; they are not opened.

    Args:
        root: a table; or a folder with the table `<split>` or else `labels` (.csv, .jsonl, .parquet); or a folder with
            one sub-folder of images per risk type.
        split: the name of a table; or a value of its column `split`; or without either "train" or "validation", into
            which `split_by_image` divides the rows. "all" is every row of one table or folder.

    Raises:
        DataError: no usable table or folder, an unknown split, or rows that break a rule, the first five of them.
    """
    root = Path(root)
    table = table_finder.find_table(root, split)
    rows = tables.read(table, NEEDED, OPTIONAL) if table else table_finder.category_rows(root, reader.taxonomy)
    folder = table.parent if table else root
    table_split = table.stem if table and table.stem in (split, *table_finder.SPLIT_NAMES) else ""
    has_column = any("split" in row.cells for row in rows)

    def convert(row: TableRow) -> list[tuple[Sample, list[str], str]]:
        sample, keys = _sample(row, folder, reader)
        return [(sample, keys, _row_split(row, table_split) if has_column else table_split)]

    converted = reader.convert_rows(rows, convert, table or root)
    splits = [row_split for _, _, row_split in converted]
    if not table_split and not has_column:
        splits = split_by_image([keys for _, keys, _ in converted])
    if split not in (EVERY, *splits):
        _check_split(split, splits, table_split, has_column, table or root)
    return [sample for (sample, _, _), row_split in zip(converted, splits) if split in (row_split, EVERY)]


def _check_split(split: str, splits: list[str], table_split: str, has_column: bool, place: Path) -> None:
    """Check the name of a split that has no rows."""
    valid, remedy = [table_split], ""
    if has_column and not table_split:
        valid = sorted(set(splits))
    elif not table_split:
        valid, remedy = ["train", "validation"], "; others need a column split, or a table of their name"
    if split not in valid:
        raise DataError(f"{place}: unknown split {split!r}; {nearest(split, [*valid, EVERY])}{remedy}")


def _sample(row: TableRow, folder: Path, reader: RowReader) -> tuple[Sample, list[str]]:
    """The row's sample and the keys of its content: real paths of its images, or its question where it has none."""
    images = [files.image_path(folder, name) for name in row.image_names("image", separator="|")]
    keys = [files.resolved_name(folder, image) for image in images]
    question, answer = row.text("question"), row.text("answer")
    label = _label(row, reader)
    if not images and not question:
        raise DataError("has neither image nor question; fill in one of them")
    content = "|".join(keys) + question
    question = question or reader.texts.question(content)
    answer = answer or reader.texts.answer(*label, content, bool(images))
    turns = (Turn("user", question), Turn("assistant", answer))
    return Sample(tuple(images), turns, *label, row.source), keys or [f"text {question}"]


def _label(row: TableRow, reader: RowReader) -> Label:
    """Type and level, by the user's labels where they name the type."""
    taxonomy, risk_type = reader.taxonomy, row.text("risk_type")
    if not risk_type:
        raise DataError(f"risk_type is empty; {nearest('', taxonomy.type_names)}")
    if risk_type in reader.labels:
        return reader.label({}, risk_type)
    taxonomy.type_index(risk_type)
    risk_level = _level(row.cells.get("risk_level"), risk_type, taxonomy)
    taxonomy.check(risk_type, risk_level)
    return risk_type, risk_level


def _level(value: object, risk_type: str, taxonomy: Taxonomy) -> int:
    """A level by number or by name; 2.0 is 2, as pandas writes a column of whole numbers with gaps."""
    if is_empty(value):
        return taxonomy.default_level(risk_type)
    number = value
    if isinstance(value, str):
        names = taxonomy.level_names
        if value.strip() in names:
            return names.index(value.strip())
        try:
            number = float(value)
        except ValueError as error:
            raise DataError(
                f"risk_level {short_repr(value)} must be 0..{len(names) - 1} or a level's name; {nearest(value, names)}"
            ) from error
    return int(number) if isinstance(number, float) and number.is_integer() else number  # others fail the check


def _row_split(row: TableRow, table_split: str) -> str:
    """The row's split; `table_split` is the split that the table's name stands for, or ""."""
    name = row.text("split")
    if not name or name == EVERY:
        raise DataError(f"split {name!r} must be the name of a split; fill it in every row, or remove the column")
    if table_split and name != table_split:
        raise DataError(
            f"split {name!r} is in a table named {table_split!r}; rename the table to labels, or remove the column"
        )
    return name
