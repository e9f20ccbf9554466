"""Shards: vision features in safetensors files, each of which is there whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
import zlib
from collections.abc import Container, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from safety_modules.sample import DataError

logger = logging.getLogger(__name__)

SUFFIX, PARTIAL = ".safetensors", ".partial"
NOTES = "notes"  # (n, 3), a row for each tensor of a shard by sorted key: checksum, the image's height and width or 0
DAY = 86400  # seconds
Entry = tuple[Tensor, Tensor | None]  # features (tiles, P, V) and the image's height and width (2,)


class Shards:
    """Features of images by key, in the files of one folder, which are mapped into memory.

    Several runs may use the folder at a time. It can be pickled, for the workers of a loader.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, tuple[str, int]] = {}  # key -> name of its shard, and its row in the notes
        self._opened: dict[str, tuple[safe_open, Tensor]] = {}
        self._checked: set[str] = set()  # keys whose checksum was right

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": {}, "_checked": set()}

    def complete(self) -> list[str]:
        """Names of the shards that can be read. What killed runs left behind and damaged shards are removed."""
        for path in self.folder.glob(f"*{PARTIAL}"):
            if _abandoned(path):
                path.unlink(missing_ok=True)
        names = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                self._open(path.name)
                names.append(path.name)
            except SafetensorError as error:
                logger.warning("%s: is damaged (%s); it is removed, and its features are computed again", path, error)
                path.unlink(missing_ok=True)
        return names

    def add(self, names: Iterable[str], keys: Container[str]) -> None:
        """Take up these keys where shards of these names hold them.

        Raises:
            DataError: there is no such shard.
        """
        for name in names:
            try:
                handle, _ = self._open(name)
            except FileNotFoundError as error:
                raise DataError(
                    f"{self.folder / name}: another process wrote it, but it is not here; name a folder that all "
                    "machines share as data.features"
                ) from error
            self.places |= {key: (name, row) for row, key in enumerate(_keys(handle)) if key in keys}

    def write(self, entries: dict[str, Entry]) -> str:
        """Write a shard and return its name. An OSError leaves nothing behind."""
        keys = sorted(entries)
        sizes = ([0, 0] if size is None else size.tolist() for _, size in (entries[key] for key in keys))
        notes = [[_checksum(entries[key]), *size] for key, size in zip(keys, sizes)]
        data = save({NOTES: torch.tensor(notes), **{key: entries[key][0].contiguous() for key in keys}})
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32] + SUFFIX
        work = self.folder / f"{name}.{os.getpid()}-{socket.gethostname()}{PARTIAL}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(work, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            work.replace(self.folder / name)
        finally:
            work.unlink(missing_ok=True)
        return name

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def __getitem__(self, key: str) -> Entry:
        """Features in the mapped file, not to be written to, and the image's size.

        Raises:
            DataError: they are damaged. Their shard is then removed.
        """
        name, row = self.places[key]
        handle, notes = self._open(name)
        entry = (handle.get_tensor(key), notes[row, 1:] if notes[row, 1] else None)
        if key not in self._checked:
            if _checksum(entry) != int(notes[row, 0]):
                (self.folder / name).unlink(missing_ok=True)
                raise DataError(f"{self.folder / name}: is damaged and was removed; start again to compute it again")
            self._checked.add(key)
        return entry

    def _open(self, name: str) -> tuple[safe_open, Tensor]:
        """A shard and its notes, opened once in each process."""
        if name not in self._opened:
            handle = safe_open(self.folder / name, framework="pt")
            notes = handle.get_tensor(NOTES)
            if notes.shape != (len(handle.keys()) - 1, 3):
                raise SafetensorError(f"its notes have the shape {tuple(notes.shape)}")
            self._opened[name] = handle, notes
        return self._opened[name]


def _keys(handle: safe_open) -> list[str]:
    return sorted(key for key in handle.keys() if key != NOTES)


def _checksum(entry: Entry) -> int:
    """CRC-32 of features and size."""
    features, size = entry
    start = zlib.crc32(features.contiguous().view(torch.uint8).numpy())
    return start if size is None else zlib.crc32(str(size.tolist()).encode(), start)


def _abandoned(path: Path) -> bool:
    """Whether the process that was writing a file is gone: on this machine if it ended, on another after a day."""
    pid, _, host = path.name.removesuffix(PARTIAL).rpartition(SUFFIX + ".")[2].partition("-")
    try:
        if host == socket.gethostname() and pid.isdecimal():
            os.kill(int(pid), 0)
        return time.time() - path.stat().st_mtime > DAY
    except PermissionError:
        return False  # another user's process
    except (ProcessLookupError, FileNotFoundError):
        return True
