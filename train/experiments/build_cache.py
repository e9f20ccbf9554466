"""Kept: a folder that is made of arguments once, with the figures that were measured when it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safety_modules.files import fresh_folder

MEASURED = "measured.json"


def stamp(base: Path, version: int, **arguments: int) -> dict:
    """What a folder is made of: the base's weights, the maker's version and its arguments."""
    weights = sorted(Path(base).glob("*.safetensors"))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}
    return {"base": digests, "version": version, **arguments}


def figures_of(output: Path, wanted: dict) -> dict | None:
    """The figures of a folder, None unless it is whole and was made of just that."""
    try:
        found = json.loads((Path(output) / MEASURED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found["figures"] if isinstance(found, dict) and found.get("stamp") == wanted else None


@contextmanager
def keep(output: Path, made_of: dict, figures: dict) -> Iterator[Path]:
    """The folder to write into; it appears with its figures, whole or not at all."""
    with fresh_folder(output) as folder:
        yield folder
        text = json.dumps({"stamp": made_of, "figures": figures}, indent=1) + "\n"
        (folder / MEASURED).write_text(text, encoding="utf-8")
