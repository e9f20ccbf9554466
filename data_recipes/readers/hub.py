"""Hub: data sets as Hugging Face `datasets` reads them: from the hub, a saved folder, or Parquet files on disk."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_recipes.readers.table_row import TableRow, short_repr
from safety_modules.sample import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

HUB = "hf://datasets/"


@dataclass(frozen=True)
class TableImage:
    """An image whose bytes are in a table: read on access, and not kept."""

    table: Dataset  # in Arrow's format
    home: Path  # folder of the image files, for a table that holds their paths alone
    row: int
    column: str
    place: int = 0  # in the cell's list of images

    def read_bytes(self) -> bytes:
        """The image's file.

        Raises:
            OSError: it is outside the data set's own folder and the hub's caches, or is missing.
        """
        cell = self.table[self.row][self.column][0].as_py()
        cell = cell[self.place] if isinstance(cell, list) else cell
        if cell["bytes"] is not None:
            return cell["bytes"]
        from datasets.config import HF_DATASETS_CACHE
        from huggingface_hub.constants import HF_HUB_CACHE

        path = Path(os.path.realpath(self.home / cell["path"]))
        if not any(path.is_relative_to(os.path.realpath(top)) for top in (self.home, HF_HUB_CACHE, HF_DATASETS_CACHE)):
            raise PermissionError(f"path {cell['path']!r} lies outside of {self.home}")
        return path.read_bytes()

    @property
    def name(self) -> str:
        """Its position in the table."""
        return f"{self.row + 1}/{self.column}/{self.place}"

    def __str__(self) -> str:
        return f"row {self.row + 1}, {self.column}"


def on_hub(root: object) -> bool:
    """Whether a root names a data set of the hub, as in hf://datasets/owner/name@revision."""
    return str(root).startswith((HUB, HUB.replace("//", "/")))  # pathlib writes hf:/


def read_rows(
    root: str | Path, split: str, files: Sequence[str] = (), config: str | None = None, first: int | None = None
) -> Iterator[TableRow]:
    """The rows of a split; each image is a `TableImage`, in a list.

    Args:
        root: hf://datasets/owner/name, a folder that `save_to_disk` wrote, or a folder with Parquet files.
        split: as the data set names it.
        files: patterns of the split's Parquet files below the folder; by default `split`-*.parquet, `split`.parquet,
            and the same in data/.
        config: of a hub data set that has several.
        first: at most this many rows; those of the hub are then streamed into memory.

    Raises:
        DataError: there is no such data set or split.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    table = _open(root, split, files, config, first)
    columns = [column for column, feature in table.features.items() if _is_image(feature)]
    plain, arrow = table.remove_columns(columns), table.with_format("arrow")
    places = {column: _image_places(arrow, column) for column in columns}
    home = Path(HF_HUB_CACHE if on_hub(root) else root)
    for row in range(len(table) if first is None else min(first, len(table))):
        cells = plain[row] if plain.features else {}
        for column in columns:
            cells[column] = [TableImage(arrow, home, row, column, place) for place in places[column][row]]
        yield TableRow(f"{Path(str(root)).name}/{split}:{row + 1}", cells)


def images(cells: dict[str, object], column: str) -> tuple[TableImage, ...]:
    """The images of a cell; a DataError where it holds none."""
    value = cells.get(column)
    if not isinstance(value, list) or not value:
        raise DataError(f"{column} {short_repr(value)} holds no image; remove the row")
    return tuple(value)


def _open(root: str | Path, split: str, files: Sequence[str], config: str | None, first: int | None) -> Dataset:
    """The split's table."""
    import datasets  # slow to import, and only hub data and Parquet need it

    try:
        if on_hub(root):
            name, _, revision = str(root).split("datasets/", 1)[1].partition("@")
            stream = first is not None
            table = datasets.load_dataset(name, config, split=split, revision=revision or None, streaming=stream)
            return _in_memory(table, first) if stream else table
        if (Path(root) / "state.json").is_file() or (Path(root) / "dataset_dict.json").is_file():
            return _select_split(datasets.load_from_disk(str(root)), root, split)
        paths = [glob.escape(path) for path in _parquet_paths(Path(root), split, files)]  # read as patterns
        return datasets.load_dataset("parquet", data_files=paths, split="train")
    except DataError:
        raise
    except Exception as error:  # datasets raises its own, the hub client's and pyarrow's errors
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise DataError(f"{root}, split {split!r}: cannot be read ({reason})") from error


def _in_memory(stream: IterableDataset, first: int) -> Dataset:
    """The first rows of a stream, whose images are not decoded."""
    import datasets

    image = datasets.Image(decode=False)
    for column, feature in (stream.features or {}).items():
        if _is_image(feature):
            stream = stream.cast_column(column, image if isinstance(feature, datasets.Image) else datasets.List(image))
    return datasets.Dataset.from_list(list(stream.take(first)), features=stream.features)


def _select_split(saved: Dataset | DatasetDict, root: object, split: str) -> Dataset:
    """The split of what `load_from_disk` gave."""
    if isinstance(saved, dict):
        if split not in saved:
            raise DataError(f"{root}: has no split {split!r}; it has {', '.join(saved)}")
        saved = saved[split]
    if saved.split is not None and str(saved.split) != split:
        raise DataError(f"{root}: is the split {str(saved.split)!r}, not {split!r}; name that one, or another folder")
    return saved


def _parquet_paths(root: Path, split: str, files: Sequence[str]) -> list[str]:
    patterns = files or (f"{split}-*.parquet", f"{split}.parquet", f"data/{split}-*.parquet", f"data/{split}.parquet")
    paths = sorted({str(path) for pattern in patterns for path in root.glob(pattern)}) if root.is_dir() else []
    if not paths:
        raise DataError(
            f"{root}: has none of {', '.join(patterns)}; give the folder that holds the split's Parquet files"
        )
    return paths


def _is_image(feature: object) -> bool:
    """Whether a column holds images or lists of images."""
    import datasets

    return isinstance(getattr(feature, "feature", feature), datasets.Image)


def _image_places(table: Dataset, column: str) -> list[list[int]]:
    """For each row, the places in its cell's list that hold an image; [0] or [] for a single image. Reads no bytes."""
    import datasets
    import pyarrow.compute as compute

    cells = table.data.column(column)
    sizes = [1] * len(cells)
    if not isinstance(table.features[column], datasets.Image):
        sizes = compute.fill_null(compute.list_value_length(cells), 0).to_pylist()
        cells = compute.list_flatten(cells)
    has_bytes, has_path = (compute.is_valid(compute.struct_field(cells, name)) for name in ("bytes", "path"))
    flags = iter(compute.or_(has_bytes, has_path).to_pylist())
    return [[place for place in range(size) if next(flags)] for size in sizes]
