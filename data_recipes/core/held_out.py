"""Held-out images: nothing may be trained on them. They are known by their content, whatever a copy is called."""

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
from data_recipes.readers.tables import read_csv
from safety_modules.files import fresh_file
from safety_modules.prompt.images import load_image
from safety_modules.sample import DataError, ImageSource

NEAR_BITS = 4  # of 64: the same image saved again or resized differs by 0 to 2, different images of text by 6 and more
HEADER = ("image", "split", "bytes", "sha256", "phash")
NUMBERS = re.compile("[0-9]+ [0-9a-f]{64} ([0-9a-f]{16})?")
REMEDY = "write the file with python -m data_recipes split"


@dataclass(frozen=True)
class Fingerprint:
    """An image's name and split, and the hashes of its content."""

    name: str
    split: str
    size: int  # of the file, in bytes
    sha256: str  # of the file
    phash: int | None = None  # perceptual, 64 bits, few of which differ if images look alike; None if not computed


@dataclass(frozen=True)
class ImageBytes:
    """An image in memory."""

    data: bytes
    name: str

    def read_bytes(self) -> bytes:
        """The image's file."""
        return self.data

    def __str__(self) -> str:
        return self.name


@dataclass
class HeldOutImages:
    """Images not to be trained on."""

    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)  # by SHA-256
    sizes: set[int] = field(default_factory=set)  # of the files

    def add(self, fingerprints: Iterable[Fingerprint]) -> None:
        """Hold these out as well; of equal files the first is kept."""
        for image in fingerprints:
            self.fingerprints.setdefault(image.sha256, image)
            self.sizes.add(image.size)

    def exact_matches(self, images: Iterable[ImageSource]) -> dict[ImageSource, Fingerprint]:
        """Images whose files are held out; a DataError where one cannot be read. Only files of an equal size are."""
        matches = {}
        for image in images if self.fingerprints else ():
            if isinstance(image, Path) and os.path.isfile(image) and os.path.getsize(image) not in self.sizes:
                continue
            if match := self.fingerprints.get(fingerprint(image, "").sha256):
                matches[image] = match
        return matches

    def near_matches(self, hashes: np.ndarray) -> list[tuple[int, Fingerprint, int]]:
        """For (n,) perceptual hashes with a match: place, nearest held-out image, and how many bits differ."""
        candidates = [image for image in self.fingerprints.values() if image.phash is not None]
        held = np.array([image.phash for image in candidates], np.uint64)
        matches = []
        for place, value in enumerate(hashes if len(held) else ()):
            bits = np.bitwise_count(held ^ value)
            nearest = int(bits.argmin())
            if bits[nearest] <= NEAR_BITS:
                matches.append((place, candidates[nearest], int(bits[nearest])))
        return matches


def fingerprint(image: ImageSource, split: str, perceptual: bool = False) -> Fingerprint:
    """The hashes of an image, the perceptual one on request; a DataError or ImageError if it cannot be read."""
    try:
        data = image.read_bytes()
    except OSError as error:
        raise DataError(f"{image}: cannot be read ({error}); check the file") from error
    phash = perceptual_hash(load_image(ImageBytes(data, str(image)))) if perceptual else None
    return Fingerprint(str(image.name), split, len(data), hashlib.sha256(data).hexdigest(), phash)


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that hardly change when an image is saved again or resized."""
    import imagehash

    bits = imagehash.phash(image).hash.ravel()
    return int(np.packbits(bits).view(">u8")[0])


def images_of(rows: Rows) -> dict[ImageSource, str]:
    """Every image of some rows, with the source of its first row."""
    images: dict[ImageSource, str] = {}
    for sample in rows:
        for image in sample.images:
            images.setdefault(image, sample.source)
    return images


def write_fingerprints(path: Path, fingerprints: Sequence[Fingerprint]) -> None:
    """Write a CSV that says which images are held out without holding any of them."""
    with fresh_file(path) as work:
        with open(work, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:  # names may be bytes
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for image in fingerprints:
                phash = "" if image.phash is None else f"{image.phash:016x}"
                writer.writerow((image.name, image.split, image.size, image.sha256, phash))


def read_fingerprints(path: Path) -> list[Fingerprint]:
    """What `write_fingerprints` wrote, without the rows of the split "train".

    Raises:
        DataError: the file is missing or is not such a file; names the line.
    """
    names, rows = read_csv(path)
    if tuple(names) != HEADER:
        raise DataError(f"{path}: must have the columns {', '.join(HEADER)}; {REMEDY}")
    fingerprints = []
    for row in rows:
        name, split, size, sha256, phash = (str(row.cells.get(column, "")) for column in HEADER)
        if row.fault or not NUMBERS.fullmatch(f"{size} {sha256} {phash}"):
            raise DataError(f"{row.source}: {row.fault or 'a size or hash is cut off or changed'}; {REMEDY}")
        fingerprints.append(Fingerprint(name, split, int(size), sha256, int(phash, 16) if phash else None))
    return [image for image in fingerprints if image.split != "train"]
