"""Hashes: the SHA-256 of images' contents, so that an image is known under any name."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_recipes.core.held_out import mark
from safety_modules.files import write_text
from safety_modules.sample import ImageSource

logger = logging.getLogger(__name__)

THREADS = 8
CHUNK = 1024  # images that are read ahead
FRESH = (
    2 * 10**9
)  # nanoseconds: a file may change again without a new time of change, so one that is younger is read again
Entry = list  # size in bytes, time of change in nanoseconds, SHA-256


class ContentHashes:
    """SHA-256 of each image's file.

    That of a file on disk is kept in an index, and holds as long as the file's path, size and time of change do: a start then
    reads no image. An image in a table is read each time, since nothing tells for certain that the table is still the same.
    """

    def __init__(self, path: Path | None) -> None:
        """Args: path: of the index, or None for none."""
        self.path = path
        self.known: dict[str, Entry] = _read(path) if path and path.is_file() else {}
        self.new: dict[str, Entry] = {}

    def of(self, images: Sequence[ImageSource]) -> list[str]:
        """The hash of each image; what was not known before is in `new` then.

        Raises:
            DataError: an image cannot be read.
        """
        stamps = [_stamp(image) for image in images]
        hashes = [self._find(stamp) for stamp in stamps]
        left = [place for place, found in enumerate(hashes) if not found]
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(left), CHUNK):
                part = left[start : start + CHUNK]
                for place, found in zip(part, pool.map(_sha256, [images[place] for place in part])):
                    hashes[place] = found
                    if stamps[place] and time.time_ns() - stamps[place][2] > FRESH:
                        path, size, changed = stamps[place]
                        self.new[path] = [size, changed, found]
        return hashes

    def keep(self, news: Iterable[dict[str, Entry]]) -> None:
        """Write the index with what several processes found."""
        known = dict(self.known)
        for new in news:
            known |= new
        if self.path and known != self.known:
            write_text(self.path, json.dumps(known))

    def _find(self, stamp: tuple[str, int, int] | None) -> str:
        size, changed, found = self.known.get(stamp[0], (None, None, "")) if stamp else (None, None, "")
        return found if stamp and (size, changed) == stamp[1:] else ""


def _stamp(image: ImageSource) -> tuple[str, int, int] | None:
    """Path, size and time of change of a file; None for an image that is none, or is missing."""
    if not isinstance(image, Path):
        return None
    try:
        found = os.stat(image)
    except OSError:
        return None  # reading it gives the error
    return os.path.abspath(image), found.st_size, found.st_mtime_ns


def _sha256(image: ImageSource) -> str:
    return mark(image, "").sha256


def _read(path: Path) -> dict[str, Entry]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {name: [int(size), int(changed), str(found)] for name, (size, changed, found) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s: cannot be read (%s); all images are hashed anew", path, error)
        return {}
