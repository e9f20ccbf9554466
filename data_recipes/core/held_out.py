"""Held out: images that nothing may be trained on, known by their content, so that another name does not hide one."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data_recipes.core.rows import Rows
from safety_modules.prompt.images import load_image
from safety_modules.sample import DataError, ImageSource

NEAR = 4  # of 64 bits: the same image saved again or resized differs by 0 to 2, different images of text by 6 and more
HEADER = ("image", "split", "bytes", "sha256", "phash")


@dataclass(frozen=True)
class Mark:
    """What an image is known by.

    Attributes:
        name: for messages.
        split: that it belongs to.
        size: of the file in bytes. sha256: of the file.
        phash: perceptual hash, 64 bits; images that look alike differ in few of them. None where it was not made.
    """

    name: str
    split: str
    size: int
    sha256: str
    phash: int | None = None


@dataclass
class HeldOut:
    """Images not to be trained on."""

    marks: dict[str, Mark] = field(default_factory=dict)  # by sha256
    sizes: set[int] = field(default_factory=set)

    def add(self, marks: Iterable[Mark]) -> None:
        """Hold these out, too."""
        for mark in marks:
            self.marks.setdefault(mark.sha256, mark)
            self.sizes.add(mark.size)

    def exact(self, images: Iterable[ImageSource]) -> dict[ImageSource, Mark]:
        """Images whose files are held out. Only files of the same size are read; a DataError where one cannot be."""
        found = {}
        for image in images if self.marks else ():
            try:
                if isinstance(image, Path) and os.path.getsize(image) not in self.sizes:
                    continue
                mark = self.marks.get(hashlib.sha256(image.read_bytes()).hexdigest())
            except OSError as error:
                raise DataError(f"{image}: cannot be read ({error}); check the file") from error
            if mark:
                found[image] = mark
        return found

    def near(self, hashes: np.ndarray) -> list[tuple[int, Mark, int]]:
        """Of (n,) perceptual hashes: place, the held-out image that looks the same, and how many bits they differ in."""
        marks = [mark for mark in self.marks.values() if mark.phash is not None]
        held = np.array([mark.phash for mark in marks], np.uint64)
        found = []
        for place, value in enumerate(hashes if len(held) else ()):
            distance = np.bitwise_count(held ^ value)
            best = int(distance.argmin())
            if distance[best] <= NEAR:
                found.append((place, marks[best], int(distance[best])))
        return found


def mark(image: ImageSource, split: str, perceptual: bool = False) -> Mark:
    """The mark of an image; a DataError or ImageError where its file cannot be read."""
    try:
        data = image.read_bytes()
    except OSError as error:
        raise DataError(f"{image}: cannot be read ({error}); check the file") from error
    phash = perceptual_hash(load_image(image)) if perceptual else None
    return Mark(str(image.name), split, len(data), hashlib.sha256(data).hexdigest(), phash)


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that an image keeps when it is saved again or resized. Needs the package imagehash."""
    import imagehash

    bits = imagehash.phash(image).hash.ravel()
    return int(np.packbits(bits).view(">u8")[0])


def images(rows: Rows) -> dict[ImageSource, str]:
    """Every image of some rows, with the source of its first row."""
    found: dict[ImageSource, str] = {}
    for sample in rows:
        for image in sample.images:
            found.setdefault(image, sample.source)
    return found


def write(path: Path, marks: Sequence[Mark]) -> None:
    """A file of marks: it tells which images are held out without holding one."""
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:  # names need not be UTF-8
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for row in marks:
            writer.writerow(
                (row.name, row.split, row.size, row.sha256, "" if row.phash is None else f"{row.phash:016x}")
            )


def read(path: Path) -> list[Mark]:
    """What `write` wrote, without the rows of the split "train".

    Raises:
        DataError: the file is missing or is no such file; names the line.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as held-out images ({error}); write it with data_recipes split"
        ) from error
    if not lines or tuple(lines[0]) != HEADER:
        raise DataError(
            f"{path}: must have the columns {', '.join(HEADER)}; write it with python -m data_recipes split"
        )
    marks = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            name, split, size, sha256, phash = line
            if not re.fullmatch("[0-9a-f]{64}", sha256) or not re.fullmatch("([0-9a-f]{16})?", phash):
                raise ValueError("a hash is cut off or changed")
            marks.append(Mark(name, split, int(size), sha256, int(phash, 16) if phash else None))
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: {line!r} is not {', '.join(HEADER)} ({error}); write the file again"
            ) from error
    return [row for row in marks if row.split != "train"]
