"""JsonRows: the rows of a large JSON file, indexed by one scan and parsed on access."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_recipes.readers.table_row import TableRow
from safety_modules.sample import DataError

CHUNK = 1 << 25  # bytes read at once
_QUOTE, _OPEN, _CLOSE = 1, 2, 3
_KINDS = np.zeros(256, np.uint8)  # of each byte
_KINDS[list(b'"[{]}')] = (_QUOTE, _OPEN, _OPEN, _CLOSE, _CLOSE)
_BOM = b"\xef\xbb\xbf"


class JsonRows(Sequence[object]):
    """The values of a JSON array, or of JSON Lines where the file does not begin with `[`.

    A scan of the file's bytes finds where each value starts and ends; sixteen bytes a row are kept, whatever the rows
    hold. So a file of a million rows opens in seconds, in little memory, and a row costs one read.

    Attributes:
        spans: (n, 2), each value's first byte and the byte after its last.
    """

    def __init__(self, path: str | Path) -> None:
        """Index a UTF-8 file, with or without a byte order mark; a DataError if it cannot be read or is cut off."""
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                head = file.read(4096)
                start = len(_BOM) if head.startswith(_BOM) else 0
                self.is_array = head[start:].lstrip().startswith(b"[")
                file.seek(start)
                self.spans = _array_spans(file, self.path) if self.is_array else _line_spans(file)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); check the file and its rights") from error

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> object:
        """The value of a row; a DataError with file and row if it is not JSON."""
        try:
            return json.loads(self.read_bytes(index))
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
            raise DataError(f"{self.source(index)}: is not JSON ({error}); correct the row") from error

    def read_bytes(self, index: int) -> bytes:
        """The JSON text of a row, as the file holds it."""
        start, end = (int(offset) for offset in self.spans[index])
        with open(self.path, "rb") as file:  # opened for each row: worker processes must not share a file position
            file.seek(start)
            return file.read(end - start)

    def source(self, index: int) -> str:
        """ "file:row", from 1, for error messages."""
        return f"{self.path.name}:{index + 1}"

    def row(self, index: int) -> TableRow:
        """A row with its source; one that is not a JSON object has a fault."""
        source = self.source(index)
        try:
            return TableRow.of(source, self[index])
        except DataError as error:
            return TableRow(source, {}, str(error).removeprefix(f"{source}: "))

    def rows(self) -> Iterator[TableRow]:
        """All rows, as `row` gives them."""
        return map(self.row, range(len(self)))


def _line_spans(file: BinaryIO) -> np.ndarray:
    """Spans of the lines that are not blank."""
    offset, spans = file.tell(), array("q")
    for line in file:
        if not line.isspace():
            spans.extend((offset, offset + len(line)))
        offset += len(line)
    return np.array(spans, np.int64).reshape(-1, 2)


def _array_spans(file: BinaryIO, path: Path) -> np.ndarray:
    """Spans of an array's own values: where the depth of brackets outside strings goes from 1 to 2 and back."""
    starts, stops = [], []
    offset, quotes, depth = file.tell(), 0, 0  # quotes: count so far, odd inside a string
    while chunk := _read_chunk(file):
        places, kinds = _unescaped_marks(np.frombuffer(chunk, np.uint8))
        is_quote = kinds == _QUOTE
        outside = ((quotes + np.cumsum(is_quote)) % 2 == 0) & ~is_quote
        quotes += int(is_quote.sum())
        places, opens = places[outside] + offset, kinds[outside] == _OPEN
        depths = depth + np.cumsum(np.where(opens, 1, -1))
        starts.append(places[opens & (depths == 2)])
        stops.append(places[~opens & (depths == 1)] + 1)
        depth = int(depths[-1]) if len(depths) else depth
        offset += len(chunk)
    if depth or quotes % 2:
        raise DataError(
            f"{path}: ends inside a value: it is cut off, or a bracket or quote is missing; fetch the file again"
        )
    return np.stack([np.concatenate(starts), np.concatenate(stops)], axis=1).astype(np.int64)


def _read_chunk(file: BinaryIO) -> bytes:
    """The next bytes, not ending in a backslash: so no chunk begins with an escaped character."""
    chunk = file.read(CHUNK)
    while chunk.endswith(b"\\") and (more := file.read(1)):
        chunk += more
    return chunk


def _unescaped_marks(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and kinds of quotes and brackets, without escaped quotes."""
    kinds = _KINDS[chunk]
    places = np.flatnonzero(kinds)
    kinds = kinds[places]
    behind = np.flatnonzero((kinds == _QUOTE) & (chunk[places - 1] == ord("\\")) & (places > 0))
    escaped = np.zeros(len(places), bool)
    length = 1  # of the run of backslashes in front of a quote; an odd one escapes it
    while len(behind):
        before = places[behind] - length - 1
        goes_on = (before >= 0) & (chunk[before] == ord("\\"))
        escaped[behind[~goes_on]] = length % 2 == 1
        behind, length = behind[goes_on], length + 1
    return places[~escaped], kinds[~escaped]
