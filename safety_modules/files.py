"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def fresh_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: written beside its place, then renamed into it."""
    folder = Path(folder)
    work = folder.with_name(folder.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def fresh_file(path: str | Path) -> Iterator[Path]:
    """A file that appears whole or not at all: written beside its place, then renamed. Creates missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(path.name + ".partial")
    try:
        yield work
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write a file in UTF-8, whole or not at all; creates missing folders. Args: errors: as in `str.encode`."""
    with fresh_file(path) as work:
        work.write_text(text, encoding="utf-8", errors=errors)
