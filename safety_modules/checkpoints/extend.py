"""Extend: a trained head -> one for another taxonomy, with the rows of shared names carried over."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safety_modules.checkpoints.format import (
    ADAPTER,
    CONFIG,
    SAFETY,
    TAXONOMY,
    WEIGHTS,
    CheckpointError,
    read_meta,
    read_taxonomy,
)
from safety_modules.files import fresh_folder
from safety_modules.taxonomy import Taxonomy

FRESH = -4.0  # added to the lowest bias: an untrained class is next to never predicted, so the others' verdicts stay


@dataclass(frozen=True)
class Change:
    """Names of types or levels that are kept, new and gone."""

    kept: tuple[str, ...]
    added: tuple[str, ...]
    dropped: tuple[str, ...]

    @classmethod
    def between(cls, old: list[str], new: list[str]) -> Change:
        """What becomes of the old names."""
        kept = tuple(name for name in new if name in old)
        return cls(kept, tuple(name for name in new if name not in old), tuple(name for name in old if name not in new))

    def __str__(self) -> str:
        parts = (("kept", self.kept), ("new", self.added), ("gone", self.dropped))
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)


def extend(folder: str | Path, output: str | Path, taxonomy: Taxonomy) -> tuple[Change, Change]:
    """Write trained modules for another taxonomy; nothing is trained here, and the base model is not loaded.

    A type or level keeps its row of the head by its name, whatever its place. A new one starts with zero weights and a low
    bias. Calibration and policy are of the old taxonomy and are left behind.

    Args:
        folder: what training or export wrote.
        output: the new folder, with `safety/` alone (and `adapter/`, where the folder has one); the base stays where it is.
        taxonomy: the new categories and levels.

    Returns:
        What changed among the types, and among the levels.

    Raises:
        CheckpointError: the folder is incomplete, or `output` exists.
    """
    folder, output = Path(folder), Path(output)
    if output.exists():
        raise CheckpointError(f"{output}: exists already; name another folder")
    base = read_meta(folder).base
    old = read_taxonomy(folder)
    names = {"type": (old.type_names, taxonomy.type_names), "level": (old.level_names, taxonomy.level_names)}
    weights = load_file(folder / SAFETY / WEIGHTS)
    for kind, (before, after) in names.items():
        for part, fresh in (("weight", 0.0), ("bias", weights[f"head.{kind}_layer.bias"].min().item() + FRESH)):
            key = f"head.{kind}_layer.{part}"
            weights[key] = _rows(weights[key], before, after, fresh)
    meta = json.loads((folder / SAFETY / CONFIG).read_text(encoding="utf-8"))
    meta["base"] = str(folder.resolve()) if base == "." else base
    with fresh_folder(output) as work:
        target = work / SAFETY
        target.mkdir()
        (target / CONFIG).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        (target / TAXONOMY).write_text(taxonomy.to_yaml(), encoding="utf-8")
        save_file(weights, target / WEIGHTS)
        if (folder / ADAPTER).exists():
            shutil.copytree(folder / ADAPTER, work / ADAPTER)
    return Change.between(*names["type"]), Change.between(*names["level"])


def _rows(old: Tensor, before: list[str], after: list[str], fresh: float) -> Tensor:
    """(old classes, ...) -> (new classes, ...): each name's own row, or one filled with `fresh`."""
    return torch.stack(
        [old[before.index(name)] if name in before else torch.full_like(old[0], fresh) for name in after]
    )
