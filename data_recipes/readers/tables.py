"""Tables: a CSV, JSON Lines or Parquet file -> its rows, each with the line it stands on."""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from data_recipes.readers.table_row import TableRow, short_repr
from safety_modules.sample import DataError

logger = logging.getLogger(__name__)


def read(path: Path, needed: Sequence[str], optional: Sequence[str]) -> list[TableRow]:
    """The rows of a table; a row that cannot be read has a fault, so that all faults can be reported together.

    Args:
        path: a file with a suffix of `SUFFIXES`.
        needed: columns that each row must have; their values may be empty.
        optional: further columns that are used. All others are ignored; one whose name is close to that of a missing
            optional column is logged.

    Raises:
        DataError: the file as a whole cannot be read: wrong suffix, not UTF-8, no rows, a missing or repeated column.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: a table is one of {', '.join(SUFFIXES)}; save it as one of them")
    names, rows = SUFFIXES[path.suffix.lower()](path)
    if not rows:
        raise DataError(f"{path}: has no rows; write the columns {', '.join(needed)} and one row per exchange")
    if names:  # none where no line is an object: then every row has a fault
        _check_columns(path, names, needed, optional)
    for place, row in enumerate(rows):
        missing = next((name for name in needed if name not in row.cells), None)
        if missing and not row.fault:  # a JSON row without a key that other rows have
            rows[place] = TableRow(row.source, row.cells, f"lacks {missing!r}; add it, null if it has no value")
    return rows


def _check_columns(path: Path, names: list[str], needed: Sequence[str], optional: Sequence[str]) -> None:
    """Check for missing and repeated columns; log a column that may be a misspelt optional one."""
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: has two columns {repeated[0]!r}; names are unique, rename or remove one")
    missing = [name for name in needed if name not in names]
    others = [name for name in names if name and name not in (*needed, *optional)]
    if missing:
        near = {name: difflib.get_close_matches(name.lower(), missing, n=1) for name in others}
        rename = "".join(f"; rename {short_repr(name)} to {match[0]!r}" for name, match in near.items() if match)
        one_column = len(names) == 1 and any(mark in names[0] for mark in ";\t")
        raise DataError(
            f"{path}: lacks the column {' and '.join(map(repr, missing))}; "
            f"its columns are {', '.join(map(short_repr, names[:12]))}{rename}"
            f"{'; separate the columns by commas' if one_column else ''}; "
            f"needed are {', '.join(needed)}, optional {', '.join(optional)}"
        )
    for name in others:
        near = difflib.get_close_matches(name.lower(), [column for column in optional if column not in names], n=1)
        if near:
            logger.warning("%s: column %r is ignored; did you mean %r?", path, name, near[0])


def _read_text(path: Path) -> str:
    """The text of a file without its byte order mark."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}:{line}: is not UTF-8; save {path} with the encoding UTF-8") from error


def read_csv(path: Path) -> tuple[list[str], list[TableRow]]:
    """Column names and rows of a CSV file with a header; a DataError where it cannot be read as one."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    names: list[str] = []
    rows = []
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                continue
            while len(cells) > len(names) and not cells[-1]:
                cells.pop()
            fault = f"has {len(cells)} cells, the header {len(names)}; put texts with a comma or a line break in quotes"
            rows.append(
                TableRow(f"{path.name}:{line}", dict(zip(names, cells)), fault if len(cells) != len(names) else "")
            )
    except csv.Error as error:
        raise DataError(
            f"{path.name}:{start}: is not CSV ({error}); close each quoted text and double the quotes inside it"
        ) from error
    return names, rows


def _read_jsonl(path: Path) -> tuple[list[str], list[TableRow]]:
    rows = []
    lines = _read_text(path).split("\n")  # not splitlines: U+2028 may stand in a JSON string
    for number, line in enumerate(lines, start=1):
        source = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            rows.append(TableRow.of(source, json.loads(line)))
        except json.JSONDecodeError as error:
            fault = f"is not JSON ({error.msg} at column {error.colno}); write one object for each row"
            rows.append(TableRow(source, {}, fault))
    return list(dict.fromkeys(name for row in rows for name in row.cells)), rows


def _read_parquet(path: Path) -> tuple[list[str], list[TableRow]]:
    import pyarrow  # slow to import
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            unique = len(set(names)) == len(names)  # repeated names are an error later
            values = file.read().to_pylist() if unique else [{}]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({short_repr(str(error))}); write it again") from error
    return names, [TableRow(f"{path.name}:{number}", cells) for number, cells in enumerate(values, start=1)]


SUFFIXES = {".csv": read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
