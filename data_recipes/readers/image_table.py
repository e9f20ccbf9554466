"""ImageTable: the images that a data set names, whatever its labels, and a copy of its table without some rows."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_recipes.readers import files, hub
from data_recipes.readers.indexed_json import JsonRows
from data_recipes.readers.table_row import TableRow
from data_recipes.readers.tables import read_csv
from safety_modules.files import fresh_file
from safety_modules.prompt.images import SUFFIXES
from safety_modules.sample import DataError, ImageSource

COLUMNS = ("image", "images", "img", "image_path", "file_name")
JSON_SUFFIXES = (".json", ".jsonl")


@dataclass
class ImageTable:
    """The rows of a data set as the images that they name."""

    root: str | Path
    images: dict[str, ImageSource] = field(default_factory=dict)  # by name, in order of first use
    rows: list[tuple[str, ...]] = field(default_factory=list)  # names of each row's images
    faults: dict[int, str] = field(default_factory=dict)  # row -> why an image that it names cannot be used

    @classmethod
    def read(cls, root: str | Path, split: str = "train", images: str | Path | None = None) -> ImageTable:
        """Find the images; none is opened.

        Args:
            root: a table (.json, .jsonl, .csv, .parquet), a folder of images, a folder with Parquet files, or
                hf://datasets/name.
            split: of a hub data set, or of a folder with Parquet files.
            images: folder that the paths of a table start at; None for the table's own.

        Raises:
            DataError: there is nothing to read, or it names no image.
        """
        table = cls(root if hub.on_hub(root) else Path(root).expanduser())
        root, is_file = table.root, not hub.on_hub(root) and table.root.is_file()
        if hub.on_hub(root) or _is_dataset(root):
            folder = root.parent if is_file else root
            for row in hub.read_rows(folder, split, (root.name,) if is_file else ()):
                table._add(row, Path(str(folder)))
        elif root.is_dir():
            table.images = {
                path.relative_to(root).as_posix(): path
                for path in sorted(root.rglob("*"))
                if path.suffix.lower() in SUFFIXES
            }
            table.rows = [(name,) for name in table.images]
        else:
            is_json = root.suffix.lower() in JSON_SUFFIXES
            for row in JsonRows(root).rows() if is_json else files.read_rows(root):
                table._add(row, Path(images).expanduser() if images else root.parent)
        if not table.images:
            reason = next((f" ({fault})" for fault in table.faults.values()), "")
            raise DataError(f"{root}: names no image that can be used{reason}; check the path and --images")
        return table

    def _add(self, row: TableRow, folder: Path) -> None:
        """Add a row by the images in its cells, or else by those that it names; it may have none."""
        cells = [cell for value in row.cells.values() if isinstance(value, list) for cell in value]
        images: dict[str, ImageSource] = {cell.name: cell for cell in cells if isinstance(cell, hub.TableImage)}
        try:
            if row.fault:
                raise DataError(row.fault)
            for name in [] if images else row.image_names(*COLUMNS):
                images[name] = self.images.get(name) or files.image_path(folder, name)
        except DataError as error:
            self.faults[len(self.rows)] = str(error)
            images = {}
        self.rows.append(tuple(images))
        for name, image in images.items():
            self.images.setdefault(name, image)

    def copy(self, output: Path, kept: np.ndarray) -> Path:
        """Write the rows to keep, unchanged and in their own format; for a folder or a hub data set the images' names.

        Args:
            output: folder of the copy.
            kept: (rows,), True for the rows to keep.

        Returns:
            The file, named `kept` with the suffix of the original.
        """
        suffix = Path(str(self.root)).suffix.lower() if isinstance(self.root, Path) and self.root.is_file() else ".txt"
        path = output / f"kept{suffix}"
        with fresh_file(path) as work:
            if suffix in JSON_SUFFIXES:
                self._copy_json(work, kept)
            elif suffix == ".csv":
                self._copy_csv(work, kept)
            elif suffix == ".parquet":
                from pyarrow import parquet

                parquet.write_table(parquet.read_table(self.root).filter(kept.tolist()), work)
            else:
                names = (name for row, keep in zip(self.rows, kept) if keep for name in row)
                work.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return path

    def _copy_json(self, work: Path, kept: np.ndarray) -> None:
        rows = JsonRows(self.root)
        texts = (rows.read_bytes(place).strip() for place in np.flatnonzero(kept))
        with open(work, "wb") as file:
            file.write(b"[\n" if rows.is_array else b"")
            for number, text in enumerate(texts):
                file.write((b",\n" if rows.is_array else b"\n") * bool(number) + text)
            file.write(b"\n]\n" if rows.is_array else b"\n")

    def _copy_csv(self, work: Path, kept: np.ndarray) -> None:
        names, rows = read_csv(self.root)
        with open(work, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *(row.cells.values() for row, keep in zip(rows, kept) if keep)])


def _is_dataset(root: Path) -> bool:
    """Whether `datasets` reads a path: a Parquet file, a folder of such files, or a saved folder."""
    if not root.is_dir():
        return root.suffix.lower() == ".parquet"
    return any(root.rglob("*.parquet")) or (root / "state.json").is_file()
