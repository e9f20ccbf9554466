"""Layout: where the labels of the user's images stand: in a table, or in the names of folders."""

from __future__ import annotations

from pathlib import Path

from data_recipes.readers.tables import SUFFIXES, Row, shown
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy, nearest

SPLIT_NAMES = ("train", "validation", "test")  # a table of such a name is that split


def find_table(root: Path, split: str) -> Path | None:
    """The table that holds a split: the root itself or the one in it; None if the root's sub-folders are the labels.

    Raises:
        DataError: there is no root, more than one such table, or tables of other splits alone.
    """
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; give a table or a folder of images")
    if not root.is_dir():
        return root
    tables = sorted(path for path in _visible(root) if path.suffix.lower() in SUFFIXES and path.is_file())
    named = [path for path in tables if path.stem == split]
    labels = [path for path in tables if path.stem == "labels"]
    halves = [path for path in tables if path.stem in ("train", "validation")]
    if labels and halves:
        raise DataError(
            f"{root}: {labels[0].name} and {halves[0].name} both hold the split {halves[0].stem!r}; keep one of them, or give "
            "the table itself as root"
        )
    found = named or labels
    if len(found) > 1:
        raise DataError(f"{root}: {' and '.join(path.name for path in found)} are the same table; keep one of them")
    stems = sorted({path.stem for path in tables if path.stem in SPLIT_NAMES})
    if not found and stems:
        raise DataError(f"{root}: no table of split {split!r}; {nearest(split, stems)}")
    return found[0] if found else None


def category_rows(folder: Path, taxonomy: Taxonomy) -> list[Row]:
    """A row for each file in a folder that is named like a risk type.

    Raises:
        DataError: no sub-folder is named like one.
    """
    kinds = [path for path in _visible(folder) if path.is_dir()]
    if not any(path.name in taxonomy.type_names for path in kinds):
        holds = ", ".join(shown(path.name) for path in _visible(folder)[:8]) or "nothing"
        raise DataError(
            f"{folder}: no labels.csv, .jsonl or .parquet and no sub-folder named like a category; it holds {holds}; "
            f"categories: {', '.join(taxonomy.type_names)}"
        )
    rows = []
    for kind in kinds:
        if kind.name not in taxonomy.type_names:
            rows.append(Row(kind.name, {}, f"is no category; {nearest(kind.name, taxonomy.type_names)}"))
            continue
        for path in _visible(kind):
            name = f"{kind.name}/{path.name}"
            fault = f"is a folder; put its images into {kind.name}/ itself" if path.is_dir() else ""
            rows.append(Row(name, {"image": [name], "risk_type": kind.name}, fault))
    return rows


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
