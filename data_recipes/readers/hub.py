"""Hub: data sets as Hugging Face `datasets` reads them: from the hub, a saved folder, or Parquet files on disk."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_recipes.readers.tables import Row, shown
from safety_modules.sample import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

HUB = "hf://datasets/"


@dataclass(frozen=True, eq=False)
class Embedded:
    """An image whose bytes lie in a table: read when asked for, and not kept.

    Attributes:
        table: that holds it, in Arrow's format. home: folder that its files lie in, where the table has their paths alone.
        row, column: where. place: in a list of images; 0 where the cell is one.
    """

    table: Dataset
    home: Path
    row: int
    column: str
    place: int = 0

    def read_bytes(self) -> bytes:
        """The image's file.

        Raises:
            OSError: it lies outside of the data set's own folder and the hub's caches, or is missing.
        """
        cell = self.table[self.row][self.column][0].as_py()
        cell = cell[self.place] if isinstance(cell, list) else cell
        if cell["bytes"] is not None:
            return cell["bytes"]
        from datasets.config import HF_DATASETS_CACHE
        from huggingface_hub.constants import HF_HUB_CACHE

        path = Path(os.path.realpath(self.home / cell["path"]))
        if not any(
            path.is_relative_to(os.path.realpath(home)) for home in (self.home, HF_HUB_CACHE, HF_DATASETS_CACHE)
        ):
            raise PermissionError(f"path {cell['path']!r} lies outside of {self.home}")
        return path.read_bytes()

    def version(self) -> str:
        """A text that changes with the image."""
        return f"{self.table._fingerprint}/{self.row}/{self.column}/{self.place}"

    @property
    def name(self) -> str:
        """Where it lies in the table."""
        return f"{self.row + 1}/{self.column}/{self.place}"

    def __hash__(self) -> int:
        return hash((id(self.table), self.row, self.column, self.place))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Embedded) and hash(self) == hash(other) and self.version() == other.version()

    def __str__(self) -> str:
        return f"row {self.row + 1}, {self.column}"


@dataclass(frozen=True)
class Streamed:
    """An image of a row that was streamed: its bytes are held. `name` is what an `Embedded` one has in the same place."""

    data: bytes
    name: str

    def read_bytes(self) -> bytes:
        """The image's file."""
        return self.data

    def version(self) -> str:
        """A text that changes with the image."""
        return hashlib.sha256(self.data).hexdigest()

    def __str__(self) -> str:
        return self.name


def on_hub(root: object) -> bool:
    """Whether a root names a data set of the hub, as in hf://datasets/owner/name@revision."""
    return str(root).startswith((HUB, HUB.replace("//", "/")))  # pathlib writes hf:/


def rows(
    root: str | Path, split: str, files: Sequence[str] = (), config: str | None = None, first: int | None = None
) -> Iterator[Row]:
    """The rows of a split; each image is an `Embedded` one, which is read later, or `Streamed`.

    Args:
        root: hf://datasets/owner/name, a folder that `save_to_disk` wrote, or a folder with Parquet files.
        split: as the data set names it.
        files: patterns of the split's Parquet files below the folder; `split`-*.parquet and data/`split`-*.parquet else.
        config: of a hub data set that has several.
        first: no more than so many rows, which the hub streams.

    Raises:
        DataError: there is no such data set or split.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    stream = first is not None and on_hub(root)
    table = _open(root, split, files, config, stream)
    name = f"{Path(str(root)).name}/{split}"
    images = [column for column, feature in (table.features or {}).items() if _is_image(feature)]
    if stream:
        for number, cells in enumerate(_first(table, first, root, split), start=1):
            held = {column: _streamed(cells[column], f"{number}/{column}") for column in images}
            yield Row(f"{name}:{number}", {**cells, **held})
        return
    plain, arrow = table.remove_columns(images), table.with_format("arrow")
    places = {column: _places(arrow, column) for column in images}
    home = Path(HF_HUB_CACHE if on_hub(root) else root)
    for number in range(len(table) if first is None else min(first, len(table))):
        cells = plain[number] if plain.features else {}
        for column, found in places.items():
            cells[column] = [Embedded(arrow, home, number, column, place) for place in found[number]]
        yield Row(f"{name}:{number + 1}", cells)


def _first(table: IterableDataset, count: int, root: object, split: str) -> Iterator[dict[str, object]]:
    """The first rows of a stream, which may break off."""
    try:
        yield from table.take(count)
    except Exception as error:  # as in `_open`
        raise _unreadable(root, split, error) from error


def _open(
    root: str | Path, split: str, files: Sequence[str], config: str | None, stream: bool
) -> Dataset | IterableDataset:
    """The table with its images as bytes."""
    import datasets  # slow to import, and only hub data and Parquet need it

    try:
        if on_hub(root):
            name, _, revision = str(root).split("datasets/", 1)[1].partition("@")
            table = datasets.load_dataset(name, config, split=split, revision=revision or None, streaming=stream)
        elif (Path(root) / "state.json").is_file() or (Path(root) / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(root))
            if isinstance(saved, dict) and split not in saved:
                raise DataError(f"{root}: has no split {split!r}; it has {', '.join(saved)}")
            table = saved[split] if isinstance(saved, dict) else saved
            if table.split is not None and str(table.split) != split:
                raise DataError(
                    f"{root}: is the split {str(table.split)!r}, not {split!r}; name that one, or another folder"
                )
        else:
            found = [
                glob.escape(path) for path in _parquet(Path(root), split, files)
            ]  # `datasets` reads them as patterns
            table = datasets.load_dataset("parquet", data_files=found, split="train")
    except DataError:
        raise
    except Exception as error:  # datasets raises its own, the hub client's and pyarrow's errors
        raise _unreadable(root, split, error) from error
    if stream:
        for column, feature in (table.features or {}).items():
            if _is_image(feature):
                table = table.cast_column(column, _undecoded(feature))
    return table


def _unreadable(root: object, split: str, error: Exception) -> DataError:
    reason = " ".join(str(error.__cause__ or error).split())[:300]
    return DataError(f"{root}, split {split!r}: cannot be read ({reason})")


def _parquet(root: Path, split: str, files: Sequence[str]) -> list[str]:
    patterns = files or (f"{split}-*.parquet", f"{split}.parquet", f"data/{split}-*.parquet", f"data/{split}.parquet")
    found = sorted({str(path) for pattern in patterns for path in root.glob(pattern)}) if root.is_dir() else []
    if not found:
        raise DataError(
            f"{root}: has none of {', '.join(patterns)}; give the folder that holds the split's Parquet files"
        )
    return found


def _is_image(feature: object) -> bool:
    import datasets

    return isinstance(getattr(feature, "feature", feature), datasets.Image)


def _undecoded(feature: object) -> object:
    import datasets

    image = datasets.Image(decode=False)
    return image if isinstance(feature, datasets.Image) else datasets.List(image)


def _places(arrow: Dataset, column: str) -> list[list[int]]:
    """Where each row's cell holds an image: places in its list; [0] or [] where it is one. The bytes are not read."""
    import datasets
    import pyarrow.compute as compute

    found: list[list[int]] = []
    for part in arrow.data.column(column).chunks:
        cells = getattr(part, "storage", part)
        sizes = [1] * len(cells)
        if not isinstance(arrow.features[column], datasets.Image):
            sizes = compute.fill_null(compute.list_value_length(cells), 0).to_pylist()
            cells = cells.flatten()
            cells = getattr(cells, "storage", cells)
        there = [cells.is_valid(), compute.or_(cells.field("bytes").is_valid(), cells.field("path").is_valid())]
        flags = iter(compute.and_(*there).to_pylist())
        found += [[place for place in range(size) if next(flags)] for size in sizes]
    return found


def _streamed(cell: object, name: str) -> list[Streamed]:
    """The images of a cell, which is one or a list."""
    cells = cell if isinstance(cell, list) else [cell]
    return [Streamed(item["bytes"], f"{name}/{place}") for place, item in enumerate(cells) if item and item["bytes"]]


def images(cells: dict[str, object], column: str) -> tuple[Embedded | Streamed, ...]:
    """The images of a cell, at least one."""
    found = cells.get(column)
    if not isinstance(found, list) or not found:
        raise DataError(f"{column} {shown(found)} holds no image; remove the row")
    return tuple(found)
