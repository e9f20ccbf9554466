"""ContentHashes: the SHA-256 of images' contents, so that an image is recognised under any name."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_recipes.core.held_out import fingerprint
from safety_modules.files import write_text
from safety_modules.sample import ImageSource

logger = logging.getLogger(__name__)

THREADS = 8
CHUNK = 1024  # images that are read ahead
MIN_AGE = 2 * 10**9  # nanoseconds: a younger file may change again without a new modification time


class ContentHashes:
    """SHA-256 of each image's file.

    That of a file on disk is kept in an index, by path, size and modification time: the next run then reads no image.
    An image in a table is read each time: nothing tells for certain that the table is still the same.
    """

    def __init__(self, path: Path | None) -> None:
        """Args: path: of the index, or None for none."""
        self.path = path
        self.index: dict[str, str] = _read(path) if path and path.is_file() else {}
        self.new: dict[str, str] = {}

    def of(self, images: Sequence[ImageSource]) -> list[str]:
        """The hash of each image; those not in the index are in `new` afterwards. DataError: one cannot be read."""
        stamps = [_stamp(image) for image in images]
        hashes = [self.index.get(stamp, "") for stamp in stamps]
        missing = [place for place, sha256 in enumerate(hashes) if not sha256]
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(missing), CHUNK):
                places = missing[start : start + CHUNK]
                for place, sha256 in zip(places, pool.map(_sha256, (images[place] for place in places))):
                    hashes[place] = sha256
                    if stamps[place]:
                        self.new[stamps[place]] = sha256
        return hashes

    def save(self, new: Iterable[dict[str, str]]) -> None:
        """Write the index with the `new` entries of several processes."""
        index = dict(self.index)
        for entries in new:
            index |= entries
        if self.path and index != self.index:
            write_text(self.path, json.dumps(index))


def _stamp(image: ImageSource) -> str:
    """Path, size and modification time of a file; "" of an image that is not a file, is missing or may still change."""
    if not isinstance(image, Path):
        return ""
    try:
        status = os.stat(image)
    except OSError:
        return ""  # reading it raises the error
    old = time.time_ns() - status.st_mtime_ns > MIN_AGE
    return f"{os.path.abspath(image)} {status.st_size} {status.st_mtime_ns}" if old else ""


def _sha256(image: ImageSource) -> str:
    return fingerprint(image, "").sha256


def _read(path: Path) -> dict[str, str]:
    try:
        return {str(stamp): str(sha256) for stamp, sha256 in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s: cannot be read (%s); all images are hashed again", path, error)
        return {}
