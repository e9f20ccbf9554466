"""Build stamp: what a folder or file was made from, written beside it, so that work is not repeated or mixed up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safety_modules.errors import UserError
from safety_modules.files import write_text


def read_stamp(path: str | Path) -> dict | None:
    """A stamp; None where there is none that can be read."""
    try:
        stamp = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def write_stamp(path: str | Path, made_from: dict) -> None:
    """Write what something was made from, as JSON, whole or not at all."""
    write_text(path, json.dumps(made_from, indent=1) + "\n")


def check_stamp(path: str | Path, made_from: dict, output: str | Path, what: str) -> None:
    """Check that an output was made from the same things; without a stamp, write one.

    Args:
        path: of the stamp.
        made_from: plain values that the output depends on.
        output: file or folder that is written, for the message.
        what: its content, for the message: "answers", "scores".

    Raises:
        UserError: names what differs.
    """
    stamp = read_stamp(path)
    if stamp is None:
        write_stamp(path, made_from)
    elif stamp != made_from:
        changed = ", ".join(sorted(key for key in {*stamp, *made_from} if stamp.get(key) != made_from.get(key)))
        raise UserError(f"{output}: holds {what} of another run ({changed} differ); name another output, or delete it")


def digest(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's file names, sizes and modification times; "" where there is neither."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        about = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr(about).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
