"""Table: a CSV, JSON Lines or Parquet file -> its rows, each with the line it stands on."""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safety_modules.sample import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        source: "file:line", the line on which the row starts in an editor; the number of the row in Parquet.
        cells: column -> value, as the file holds it.
        fault: why the row cannot be read; empty if it can.
    """

    source: str
    cells: dict[str, object]
    fault: str = ""


def shown(value: object) -> str:
    """A value in an error message, on one line and cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read(path: Path, needed: Sequence[str], optional: Sequence[str]) -> list[Row]:
    """The rows of a table; a row that cannot be read has a fault, so that all of them can be reported together.

    Args:
        path: a file with a suffix of `SUFFIXES`.
        needed: columns that each row must have; their values may be empty.
        optional: further columns that count. All others are ignored; one whose name is like that of a missing
            optional column is logged.

    Raises:
        DataError: the file as a whole cannot be read: wrong kind, not UTF-8, no rows, a column missing or named twice.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: a table is one of {', '.join(SUFFIXES)}; save it as one of them")
    names, rows = SUFFIXES[path.suffix.lower()](path)
    if not rows:
        raise DataError(f"{path}: has no rows; write the columns {', '.join(needed)} and one row per exchange")
    if names:  # none where no line is an object: then every row has a fault
        _check_names(path, names, needed, optional)
    return [row if row.fault else Row(row.source, row.cells, _lack(row, needed)) for row in rows]


def _lack(row: Row, needed: Sequence[str]) -> str:
    """The fault of a JSON row without a key that other rows have; empty if it has all."""
    return next((f"lacks {name!r}; add it, null if it has no value" for name in needed if name not in row.cells), "")


def _check_names(path: Path, names: list[str], needed: Sequence[str], optional: Sequence[str]) -> None:
    """Refuse missing and repeated columns; log a column that may be a misspelt one."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: has two columns {twice[0]!r}; names are unique, rename or remove one")
    missing = [name for name in needed if name not in names]
    others = [name for name in names if name and name not in (*needed, *optional)]
    if missing:
        near = {name: difflib.get_close_matches(name.lower(), missing, n=1) for name in others}
        rename = "".join(f"; rename {shown(name)} to {match[0]!r}" for name, match in near.items() if match)
        comma = (
            "; separate the columns by commas" if len(names) == 1 and any(mark in names[0] for mark in ";\t") else ""
        )
        raise DataError(
            f"{path}: lacks the column {' and '.join(map(repr, missing))}; its columns are {', '.join(map(shown, names[:12]))}"
            f"{rename}{comma}; needed are {', '.join(needed)}, optional {', '.join(optional)}"
        )
    for name in others:
        near = difflib.get_close_matches(name.lower(), [column for column in optional if column not in names], n=1)
        if near:
            logger.warning("%s: column %r is ignored; did you mean %r?", path, name, near[0])


def _text(path: Path) -> str:
    """The text of a file without its byte order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}:{line}: is not UTF-8; save {path} with the encoding UTF-8") from error


def _csv(path: Path) -> tuple[list[str], list[Row]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
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
            fault = ""
            if len(cells) != len(names):
                fault = (
                    f"has {len(cells)} cells, the header {len(names)}; put texts with a comma or a line break in quotes"
                )
            rows.append(Row(f"{path.name}:{line}", dict(zip(names, cells)), fault))
    except csv.Error as error:
        remedy = "close each quoted text and double the quotes inside it"
        raise DataError(f"{path.name}:{start}: is not CSV ({error}); {remedy}") from error
    return names, rows


def _jsonl(path: Path) -> tuple[list[str], list[Row]]:
    names: dict[str, None] = {}
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # not splitlines: U+2028 may stand in a JSON text
        if not line.strip():
            continue
        cells, fault = {}, ""
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            fault = f"is not JSON ({error.msg} at column {error.colno}); write one object per line"
        else:
            if isinstance(value, dict):
                cells = value
            else:
                fault = f"is {shown(value)}, not an object; write one object per line"
        names.update(dict.fromkeys(cells))
        rows.append(Row(f"{path.name}:{number}", cells, fault))
    return list(names), rows


def _parquet(path: Path) -> tuple[list[str], list[Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet is read by pyarrow; pip install pyarrow, or save the table as .csv or .jsonl"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            values = (
                file.read().to_pylist() if len(set(names)) == len(names) else [{}]
            )  # repeated names are refused later
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({shown(str(error))}); write it again") from error
    return names, [Row(f"{path.name}:{number}", cells) for number, cells in enumerate(values, start=1)]


SUFFIXES = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
