"""Annotation: the images that any data set names, and a copy of its table without some of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_recipes.readers import files, hub
from data_recipes.readers.indexed_json import JsonRows
from safety_modules.prompt.images import SUFFIXES
from safety_modules.sample import DataError, ImageSource

COLUMNS = ("image", "images", "img", "image_path", "file_name")


@dataclass
class Annotation:
    """A data set as images, whatever it is labelled with.

    Attributes:
        root: a table (.json, .jsonl, .csv, .parquet), a folder of images, a folder with Parquet files, or hf://datasets/name.
        images: name -> image, each once, in order of first use.
        rows: names of each row's images; of a folder, a row for each image.
        faults: rows that name an image which cannot be used, and why.
    """

    root: str | Path
    images: dict[str, ImageSource] = field(default_factory=dict)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, root: str | Path, split: str = "train", images: str | Path | None = None) -> Annotation:
        """Find the images; none is opened.

        Args:
            split: of a hub data set, or of a folder with Parquet files.
            images: folder that the paths of a table start at; the table's own where it is None.

        Raises:
            DataError: there is nothing to read, or it names no image.
        """
        found = cls(root if hub.on_hub(root) else Path(root).expanduser())
        if found._tabular:
            found._from_table(split)
        elif found.root.is_dir():
            for path in sorted(path for path in found.root.rglob("*") if path.suffix.lower() in SUFFIXES):
                found._add([(path.relative_to(found.root).as_posix(), path)])
        else:
            found._from_file(Path(images).expanduser() if images else found.root.parent)
        if not found.images:
            first = "; ".join(list(found.faults.values())[:1])
            raise DataError(
                f"{root}: names no image that can be used{f' ({first})' if first else ''}; check the path and --images"
            )
        return found

    def copy(self, output: Path, kept: np.ndarray) -> Path:
        """Write the rows that are kept, as they stand, in the format they came in; of a folder or a hub set, the images' names.

        Args:
            output: folder of the copy.
            kept: (rows,), True.

        Returns:
            The file, named `kept` with the suffix of the original.
        """
        suffix = Path(str(self.root)).suffix.lower() if isinstance(self.root, Path) and self.root.is_file() else ".txt"
        path, work = output / f"kept{suffix}", output / f"kept{suffix}.partial"
        if suffix in (".json", ".jsonl"):
            self._copy_json(work, kept)
        elif suffix == ".csv":
            self._copy_csv(work, kept)
        elif suffix == ".parquet":
            import pyarrow.parquet as parquet

            parquet.write_table(parquet.read_table(self.root).filter(kept.tolist()), work)
        else:
            names = (name for row, keep in zip(self.rows, kept) if keep for name in row)
            work.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        work.replace(path)
        return path

    @property
    def _tabular(self) -> bool:
        """Whether `datasets` reads it: a hub data set, or Parquet."""
        if hub.on_hub(self.root) or self.root.suffix.lower() == ".parquet":
            return True
        return self.root.is_dir() and (
            any(self.root.rglob("*.parquet")) or any(self.root.glob("*.json")) and (self.root / "state.json").is_file()
        )

    def _add(self, images: Iterable[tuple[str, ImageSource]]) -> None:
        images = list(images)
        for name, image in images:
            self.images.setdefault(name, image)
        self.rows.append(tuple(name for name, _ in images))

    def _from_table(self, split: str) -> None:
        single = isinstance(self.root, Path) and self.root.is_file()
        rows = hub.rows(self.root.parent, split, (self.root.name,)) if single else hub.rows(self.root, split)
        for row in rows:
            cells = [cell for value in row.cells.values() if isinstance(value, list) for cell in value]
            images = [cell for cell in cells if isinstance(cell, hub.Embedded)]
            if images:
                self._add((image.name, image) for image in images)
            else:
                self._named(row.cells, self.root.parent if single else Path(str(self.root)))

    def _from_file(self, folder: Path) -> None:
        rows = JsonRows(self.root) if self.root.suffix.lower() in (".json", ".jsonl") else files.rows(self.root)
        for row in rows:
            self._named(row if isinstance(rows, JsonRows) else row.cells, folder)

    def _named(self, cells: object, folder: Path) -> None:
        """A row that names its images by path; one without an image is a row, too."""
        try:
            if not isinstance(cells, dict):
                raise DataError("is not an object")
            column = next((name for name in COLUMNS if not files.empty(cells.get(name))), None)
            names = files.names(cells[column]) if column else []
            self._add((name, self.images.get(name) or files.image(folder, name)) for name in names)
        except DataError as error:
            self.faults[len(self.rows)] = str(error)
            self.rows.append(())

    def _copy_json(self, work: Path, kept: np.ndarray) -> None:
        rows = JsonRows(self.root)
        with open(self.root, "rb") as source, open(work, "wb") as target:
            array = source.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
            target.write(b"[\n" if array else b"")
            for number, place in enumerate(np.flatnonzero(kept)):
                start, end = (int(value) for value in rows.places[place])
                source.seek(start)
                target.write((b",\n" if array else b"\n") if number else b"")
                target.write(source.read(end - start).strip())
            target.write(b"\n]\n" if array else b"\n")

    def _copy_csv(self, work: Path, kept: np.ndarray) -> None:
        rows = [row for row, keep in zip(files.rows(self.root), kept) if keep]
        with open(work, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0].cells) if rows else [])
            writer.writeheader()
            writer.writerows(row.cells for row in rows)
