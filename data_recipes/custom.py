"""Custom: the user's own pictures, labelled in a table or by the folders they lie in. Described in docs/your-data.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from data_recipes import _layout, _splits, _table
from data_recipes._table import Row, shown
from data_recipes.sample import DataError, Sample, Turn
from safety_modules.taxonomy import Taxonomy, TaxonomyError, nearest

NEEDED = ("image", "risk_type")
OPTIONAL = ("question", "answer", "risk_level", "split")
EVERY = "all"
_REPORTED = 5


def samples(root: str | Path, split: str, taxonomy: Taxonomy) -> list[Sample]:
    """The rows of a split, in the order of the table or of the file names.

    A text that a row lacks is one of the taxonomy's, a missing level the default of its type. All rows are checked, also
    those of other splits. Pictures are looked for but not opened.

    Args:
        root: a table; or a folder with the table `<split>` or else `labels` (.csv, .jsonl, .parquet); or a folder with one
            sub-folder of pictures per risk type.
        split: the name of a table, a value of its column `split`, or without either "train" or "validation", which are
            made by `by_picture`. "all" is every row of one table or folder.
        taxonomy: names of types and levels, and the texts to fill with.

    Raises:
        DataError: no usable table or folder, an unknown split, or rows that break a rule, the first five of them.
    """
    root = Path(root)
    table = _layout.find_table(root, split)
    rows = _table.read(table, NEEDED, OPTIONAL) if table else _layout.category_rows(root, taxonomy)
    folder = table.parent if table else root
    named = table.stem if table and table.stem in (split, *_layout.SPLIT_NAMES) else ""
    column = any("split" in row.cells for row in rows)
    read, faults = [], []
    for row in rows:
        try:
            if row.fault:
                raise DataError(row.fault)
            read.append((*_sample(row, folder, taxonomy), _split(row, named) if column else named))
        except (DataError, TaxonomyError) as error:
            faults.append(f"{row.source}: {error}")
    if faults:
        more = [f"and {len(faults) - _REPORTED} more"] if len(faults) > _REPORTED else []
        head = f"{table or root}: {len(faults)} of {len(rows)} rows cannot be used"
        raise DataError("\n".join([head, *faults[:_REPORTED], *more]))
    splits = [name for _, _, name in read] if named or column else _splits.by_picture([keys for _, keys, _ in read])
    valid = [named] if named else sorted(set(splits)) if column else ["train", "validation"]
    if split not in (*valid, EVERY):
        more = "" if named or column else "; others need a column split, or a table of their name"
        raise DataError(f"{table or root}: unknown split {split!r}; {nearest(split, [*valid, EVERY])}{more}")
    return [sample for (sample, _, _), name in zip(read, splits) if split in (name, EVERY)]


def _sample(row: Row, folder: Path, taxonomy: Taxonomy) -> tuple[Sample, list[str]]:
    """The row's sample and the keys of its content: real paths of its pictures, or its question where it has none."""
    images, keys = _pictures(row.cells["image"], folder)
    question, answer, risk_type = (_text(row, column) for column in ("question", "answer", "risk_type"))
    if not risk_type:
        raise DataError(f"risk_type is empty; {nearest('', taxonomy.type_names)}")
    taxonomy.type_index(risk_type)
    risk_level = _level(row.cells.get("risk_level"), risk_type, taxonomy)
    taxonomy.check(risk_type, risk_level)
    if not images and not question:
        raise DataError("has neither image nor question; fill one of them")
    content = "|".join(keys) + question
    question = question or _choose(f"question {content}", taxonomy.questions, "question", "`questions`")
    level_name = taxonomy.level_names[risk_level]
    answer = answer or _choose(
        f"answer {content}", taxonomy.answers(risk_type, risk_level), "answer", f"`answers` for level {level_name!r}"
    )
    turns = (Turn("user", question), Turn("assistant", answer))
    return Sample(images, turns, risk_type, risk_level, row.source), keys or [f"text {question}"]


def _choose(key: str, texts: Sequence[str], column: str, name: str) -> str:
    """One of the taxonomy's texts, chosen by the hash of a key."""
    if not texts:
        raise DataError(f"has no {column} and the taxonomy has no {name} to take one from; write either")
    return texts[int(_splits.share(key) * len(texts))]


def _pictures(value: object, folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """Paths of a cell's pictures, and what they are after symbolic links, relative to the folder."""
    if _empty(value):
        return (), []
    names = [name.strip() for name in value.split("|")] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"image {shown(value)} must be a path, paths separated by |, or a list of paths, none of them empty")
    home = Path(os.path.realpath(folder))
    keys = []
    for name in names:
        if os.path.isabs(name) or PureWindowsPath(name).is_absolute():
            raise DataError(f"image {shown(name)} is an absolute path; paths start at {folder}")
        try:
            real = Path(os.path.realpath(folder / name))
        except ValueError:  # a null character
            real = home  # no file
        if not real.is_relative_to(home):
            raise DataError(f"image {shown(name)} leaves {folder}; put the picture, not a link to it, under that folder")
        if not os.path.isfile(real):  # unlike Path.is_file, False for a name that is too long
            raise DataError(f"image {shown(name)}: no such file under {folder}; correct the path, which is written with /")
        keys.append(real.relative_to(home).as_posix())
    return tuple(folder / name for name in names), keys


def _text(row: Row, column: str) -> str:
    """A cell's text without blanks around it; empty where it has none."""
    value = row.cells.get(column)
    if _empty(value):
        return ""
    if not isinstance(value, str):
        raise DataError(f"{column} {shown(value)} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{column} {shown(value)} holds half of a character pair, which is no text; write it again") from error
    return value.strip()


def _level(value: object, risk_type: str, taxonomy: Taxonomy) -> int:
    """A level by number or by name; 2.0 is 2, as pandas writes a column of whole numbers with gaps."""
    if _empty(value):
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
    name = _text(row, "split")
    if not name or name == EVERY:
        raise DataError(f"split {name!r} must be the name of a split; fill it in every row, or remove the column")
    if table and name != table:
        raise DataError(f"split {name!r} stands in a table named {table!r}; rename the table to labels, or remove the column")
    return name


def _empty(value: object) -> bool:
    """True of no value: None, blank text, NaN, no pictures."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip()) or value != value
