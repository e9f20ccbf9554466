"""JSON: the rows of a large file, found once by their place in it and parsed when asked for."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from safety_modules.sample import DataError

CHUNK = 1 << 25  # bytes read at once
_QUOTE, _OPEN, _CLOSE = 1, 2, 3
_KINDS = np.zeros(256, np.uint8)
_KINDS[ord('"')] = _QUOTE
_KINDS[[ord("["), ord("{")]] = _OPEN
_KINDS[[ord("]"), ord("}")]] = _CLOSE
_BOM = b"\xef\xbb\xbf"


class JsonRows(Sequence[object]):
    """The values of a JSON array, or of JSON Lines where the file does not begin with `[`.

    A scan of the file's bytes gives the place of each; sixteen bytes a row are kept, whatever the rows hold. So a file of a
    million rows opens in seconds, in little memory, and a row costs one read.
    """

    def __init__(self, path: str | Path) -> None:
        """Args: path: UTF-8, with or without a byte order mark.

        Raises:
            DataError: the file cannot be read, or is cut off.
        """
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                head = file.read(4096)
                start = len(_BOM) if head.startswith(_BOM) else 0
                is_array = head[start:].lstrip().startswith(b"[")
                file.seek(start)
                self.places = (
                    _array(file, self.path) if is_array else _lines(file)
                )  # (n, 2) first byte, byte after the last
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); check the file and its rights") from error

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> object:
        """The value of a row.

        Raises:
            DataError: it is not JSON; names file and row.
        """
        start, end = (int(place) for place in self.places[index])
        with open(self.path, "rb") as file:  # opened for each row: worker processes must not share a place in it
            file.seek(start)
            data = file.read(end - start)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
            raise DataError(f"{self.source(index)}: is not JSON ({error}); correct the row") from error

    def source(self, index: int) -> str:
        """ "file:row", from 1, for error messages."""
        return f"{self.path.name}:{index + 1}"


def _lines(file) -> np.ndarray:
    """Places of the lines that are not blank."""
    offset, places = file.tell(), array("q")
    for line in file:
        if not line.isspace():
            places.extend((offset, offset + len(line)))
        offset += len(line)
    return np.array(places, np.int64).reshape(-1, 2)


def _array(file, path: Path) -> np.ndarray:
    """Places of an array's own objects and arrays: where the depth of brackets outside of texts goes from 1 to 2 and back."""
    starts, stops = [], []
    offset, quotes, depth = file.tell(), 0, 0  # quotes: how many so far, odd inside a text
    while chunk := _chunk(file):
        places, kinds = _marks(np.frombuffer(chunk, np.uint8))
        quote = kinds == _QUOTE
        outside = ((quotes + np.cumsum(quote)) % 2 == 0) & ~quote
        quotes += int(quote.sum())
        places, opens = places[outside] + offset, kinds[outside] == _OPEN
        after = depth + np.cumsum(np.where(opens, 1, -1))
        starts.append(places[opens & (after == 2)])
        stops.append(places[~opens & (after == 1)] + 1)
        depth = int(after[-1]) if len(after) else depth
        offset += len(chunk)
    if depth or quotes % 2:
        raise DataError(
            f"{path}: ends inside a value: it is cut off, or a bracket or quote is missing; fetch the file again"
        )
    return np.stack([np.concatenate(starts), np.concatenate(stops)], axis=1).astype(np.int64)


def _chunk(file) -> bytes:
    """The next bytes, not ending in a backslash: so no chunk begins with an escaped character."""
    chunk = file.read(CHUNK)
    while chunk.endswith(b"\\") and (more := file.read(1)):
        chunk += more
    return chunk


def _marks(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and kinds of quotes and brackets, without escaped quotes."""
    kinds = _KINDS[chunk]
    places = np.flatnonzero(kinds)
    kinds = kinds[places]
    behind = np.flatnonzero((kinds == _QUOTE) & (chunk[places - 1] == ord("\\")) & (places > 0))
    escaped = np.zeros(len(places), bool)
    length = 1  # of the run of backslashes in front of a quote; an odd one escapes it
    while len(behind):
        at = places[behind] - length - 1
        goes_on = (at >= 0) & (chunk[at] == ord("\\"))
        escaped[behind[~goes_on]] = length % 2 == 1
        behind, length = behind[goes_on], length + 1
    return places[~escaped], kinds[~escaped]
