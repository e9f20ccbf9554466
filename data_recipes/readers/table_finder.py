"""Where the labels of the user's own images are: in a table, or in the names of their folders."""

from __future__ import annotations

from pathlib import Path

from data_recipes.readers.table_row import TableRow, short_repr
from data_recipes.readers.tables import SUFFIXES
from safety_modules.errors import nearest
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy

SPLIT_NAMES = ("train", "validation", "test")  # a table of such a name holds that split


def find_table(root: Path, split: str) -> Path | None:
    """The table that holds a split: the root itself, or one in it; None if the root's sub-folders are the labels.

    Raises:
        DataError: there is no root, more than one such table, or only tables of other splits.
    """
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; give a table or a folder of images")
    if not root.is_dir():
        return root
    tables: dict[str, list[Path]] = {}
    for path in _visible(root):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            tables.setdefault(path.stem, []).append(path)
    half = next((name for name in ("train", "validation") if name in tables), None)
    if "labels" in tables and half:
        raise DataError(
            f"{root}: {tables['labels'][0].name} and {tables[half][0].name} both hold the split {half!r}; keep one of "
            "them, or give the table itself as root"
        )
    candidates = tables.get(split) or tables.get("labels") or []
    if len(candidates) > 1:
        names = " and ".join(path.name for path in candidates)
        raise DataError(f"{root}: {names} are the same table; keep one of them")
    if not candidates and (others := sorted(tables.keys() & set(SPLIT_NAMES))):
        raise DataError(f"{root}: no table of split {split!r}; {nearest(split, others)}")
    return candidates[0] if candidates else None


def category_rows(root: Path, taxonomy: Taxonomy) -> list[TableRow]:
    """A row for each file in a folder named like a risk type; other and nested folders are rows with a fault.

    Raises:
        DataError: no sub-folder is named like a risk type.
    """
    folders = [path for path in _visible(root) if path.is_dir()]
    if not any(folder.name in taxonomy.type_names for folder in folders):
        content = ", ".join(short_repr(path.name) for path in _visible(root)[:8]) or "nothing"
        raise DataError(
            f"{root}: no labels.csv, .jsonl or .parquet and no sub-folder named like a category; it holds {content}; "
            f"categories: {', '.join(taxonomy.type_names)}"
        )
    rows = []
    for folder in folders:
        if folder.name not in taxonomy.type_names:
            rows.append(TableRow(folder.name, {}, f"is not a category; {nearest(folder.name, taxonomy.type_names)}"))
            continue
        for path in _visible(folder):
            name = f"{folder.name}/{path.name}"
            fault = f"is a folder; put its images into {folder.name}/ itself" if path.is_dir() else ""
            rows.append(TableRow(name, {"image": [name], "risk_type": folder.name}, fault))
    return rows


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
