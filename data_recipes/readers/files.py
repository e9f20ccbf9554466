"""Files: images and texts that a row names, each checked before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from data_recipes.readers import tables
from data_recipes.readers.indexed_json import JsonRows
from data_recipes.readers.tables import Row, shown
from safety_modules.sample import DataError


def image(folder: Path, name: object) -> Path:
    """The image that a row names, below `folder`.

    Raises:
        DataError: the name is no relative path, leads out of the folder, by a link too, or there is no such file.
    """
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"image {shown(name)} must be a path; fill it in")
    if os.path.isabs(name) or PureWindowsPath(name).is_absolute():
        raise DataError(f"image {shown(name)} is an absolute path; paths start at {folder}")
    home = _home(os.path.abspath(folder))
    try:
        real = os.path.realpath(os.path.join(folder, name))
    except ValueError:  # a null character
        real = home
    if real != home and not real.startswith(os.path.join(home, "")):
        raise DataError(f"image {shown(name)} leaves {folder}; put the image, not a link to it, under that folder")
    if not os.path.isfile(real):  # unlike Path.is_file, False for a name that is too long
        raise DataError(f"image {shown(name)}: no such file under {folder}; correct the path, which is written with /")
    return folder / name


@lru_cache(maxsize=64)
def _home(folder: str) -> str:
    """An absolute path after links; asked for with every image."""
    return os.path.realpath(folder)


def key(folder: Path, path: Path) -> str:
    """What an image is after links, relative to the folder."""
    return Path(os.path.realpath(path)).relative_to(os.path.realpath(folder)).as_posix()


def text(cells: dict[str, object], column: str, needed: bool = False) -> str:
    """A cell's text without blanks around it; "" where it has none and that is allowed."""
    value = cells.get(column)
    if empty(value):
        if needed:
            raise DataError(f"{column} is empty; fill it in")
        return ""
    if not isinstance(value, str):
        raise DataError(f"{column} {shown(value)} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{column} {shown(value)} holds half of a character pair, which is no text; write it again"
        ) from error
    return value.strip()


def empty(value: object) -> bool:
    """True of no value: None, blank text, NaN, no images."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip()) or value != value


def find(root: Path, *names: str) -> Path:
    """The first of some files that is there.

    Raises:
        DataError: there is none; lists what was looked for and what is there.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    holds = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else "no such folder"
    raise DataError(f"{root}: lacks {' or '.join(names)}; it holds: {holds or 'nothing'}")


def rows(path: Path, *needed: str) -> Iterator[Row]:
    """The rows of a JSON array, a JSON object of rows by id, JSON Lines, CSV or Parquet.

    Args: needed: columns of a CSV or Parquet file without which it is not the one that is meant: a header may be missing.
    """
    if path.suffix.lower() in (".csv", ".parquet"):
        yield from tables.read(path, needed, ())
        return
    for source, value in _json_values(path):
        if isinstance(value, DataError):
            yield Row(source, {}, str(value))
        elif isinstance(value, dict):
            yield Row(source, value)
        else:
            yield Row(source, {}, f"is {shown(value)}, not an object; write one object for each row")


def _json_values(path: Path) -> Iterator[tuple[str, object]]:
    found = JsonRows(path)
    if path.suffix.lower() == ".json" and len(found) and (table := _object(path)) is not None:
        yield from ((f"{path.name}:{name}", _with_id(name, value)) for name, value in table.items())
        return
    for place in range(len(found)):
        try:
            yield found.source(place), found[place]
        except DataError as error:
            yield found.source(place), error


def _object(path: Path) -> dict | None:
    """The one object that a file holds, rows by their ids; None where it holds a list, or an object on each line."""
    with open(path, encoding="utf-8-sig") as file:
        if file.read(1) != "{":
            return None
        try:
            return json.loads("{" + file.read())
        except json.JSONDecodeError:
            return None


def _with_id(name: str, value: object) -> object:
    return {"id": name, **value} if isinstance(value, dict) else value


def names(value: object, mark: str = "<split>") -> list[str]:
    """Paths of a cell's images: one, a list, or several with `mark` between them."""
    if empty(value):
        return []
    found = [name.strip() for name in value.split(mark)] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise DataError(
            f"image {shown(value)} must be a path, paths separated by {mark}, or a list of paths, none of them empty"
        )
    return found


def first(cells: dict[str, object], *columns: str) -> str:
    """The text of the first of some columns that is there: for a set whose files name one thing differently.

    Raises:
        DataError: the row has none of them; lists what it has.
    """
    for column in columns:
        value = cells.get(column)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not empty(value):
            return text({column: value}, column)
    raise DataError(f"has none of {', '.join(columns)}; it has {', '.join(cells) or 'nothing'}")
