"""Files: the tables and images of a data set's folder, each checked before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from data_recipes.readers import tables
from data_recipes.readers.indexed_json import JsonRows
from data_recipes.readers.table_row import TableRow, short_repr
from safety_modules.sample import DataError


def image_path(folder: Path, name: object) -> Path:
    """The image that a row names, below `folder`.

    Raises:
        DataError: the name is not a relative path, leads out of the folder (also by a link), or there is no such file.
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"image {short_repr(name)} must be a path; fill it in")
    if os.path.isabs(name) or PureWindowsPath(name).is_absolute():
        raise DataError(f"image {short_repr(name)} is an absolute path; paths start at {folder}")
    root = _resolved(os.path.abspath(folder))
    try:
        path = os.path.realpath(os.path.join(folder, name))
    except ValueError:  # a null character
        path = root
    if path != root and not path.startswith(os.path.join(root, "")):
        raise DataError(f"image {short_repr(name)} leaves {folder}; put the image, not a link to it, under that folder")
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        raise DataError(
            f"image {short_repr(name)}: no such file under {folder}; correct the path, which is written with /"
        )
    return folder / name


@lru_cache(maxsize=64)
def _resolved(folder: str) -> str:
    """An absolute path with its links resolved; needed for every image."""
    return os.path.realpath(folder)


def resolved_name(folder: Path, path: Path) -> str:
    """An image's path relative to the folder, with links resolved: equal for two names of one file."""
    return Path(os.path.realpath(path)).relative_to(os.path.realpath(folder)).as_posix()


def find(root: Path, *names: str) -> Path:
    """The first of these files that exists.

    Raises:
        DataError: none exists; lists what was looked for and what is there.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    content = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else "no such folder"
    raise DataError(f"{root}: lacks {' or '.join(names)}; it holds: {content or 'nothing'}")


def read_rows(path: Path, *needed: str) -> Iterator[TableRow]:
    """The rows of a JSON array, a JSON object of rows by id, JSON Lines, CSV or Parquet.

    Args:
        needed: columns that a CSV or Parquet file must have; a file without them may lack its header.
    """
    if path.suffix.lower() in (".csv", ".parquet"):
        yield from tables.read(path, needed, ())
        return
    values = JsonRows(path)
    by_id = _object_of_rows(path) if path.suffix.lower() == ".json" and len(values) else None
    if by_id is None:
        yield from values.rows()
        return
    for name, value in by_id.items():
        yield TableRow.of(f"{path.name}:{name}", {"id": name, **value} if isinstance(value, dict) else value)


def _object_of_rows(path: Path) -> dict | None:
    """The object of a file that holds a single one: rows by their ids. None for an array or JSON Lines."""
    with open(path, encoding="utf-8-sig") as file:
        if file.read(1) != "{":
            return None
        try:
            return json.loads("{" + file.read())
        except json.JSONDecodeError:
            return None
