"""Extend: a trained head -> one for another taxonomy, with the rows of shared names kept."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from safety_modules.checkpoints.format import (
    ADAPTER,
    CheckpointError,
    read_meta,
    read_taxonomy,
    read_weights,
    write_safety,
)
from safety_modules.files import fresh_folder
from safety_modules.taxonomy import Taxonomy

NEW_BIAS = -4.0  # below the lowest bias: an untrained class is almost never predicted, so other verdicts stay


@dataclass(frozen=True)
class Change:
    """Names of types or levels that are kept, new and gone."""

    kept: tuple[str, ...]
    added: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        groups = (("kept", self.kept), ("new", self.added), ("gone", self.dropped))
        return "; ".join(f"{title}: {', '.join(names)}" for title, names in groups if names)


def extend(folder: str | Path, output: str | Path, taxonomy: Taxonomy) -> tuple[Change, Change]:
    """Write trained modules for another taxonomy; nothing is trained here, and the base model is not loaded.

    A type or level keeps the row of the head that has its name. A new one starts with zero weights and a low bias.
    Calibration and policy belong to the old taxonomy and are not copied.

    Args:
        folder: what training or export wrote.
        output: the new folder, with `safety/` alone (and `adapter/`, if the folder has one); the base stays where it
            is.
        taxonomy: the new categories and levels.

    Returns:
        What changed among the types, and among the levels.

    Raises:
        CheckpointError: the folder is incomplete, or `output` exists.
    """
    folder, output = Path(folder), Path(output)
    if output.exists():
        raise CheckpointError(f"{output}: exists already; name another folder")
    meta, old = read_meta(folder), read_taxonomy(folder)
    names = {"type": (old.type_names, taxonomy.type_names), "level": (old.level_names, taxonomy.level_names)}
    weights = read_weights(folder)
    for layer, (before, after) in names.items():
        bias = weights[f"head.{layer}_layer.bias"].min().item() + NEW_BIAS
        for parameter, fill in (("weight", 0.0), ("bias", bias)):
            key = f"head.{layer}_layer.{parameter}"
            weights[key] = _rows(weights[key], before, after, fill)
    base = str(folder.resolve()) if meta.base == "." else meta.base
    with fresh_folder(output) as work:
        write_safety(work, replace(meta, base=base), taxonomy, weights)
        if (folder / ADAPTER).exists():
            shutil.copytree(folder / ADAPTER, work / ADAPTER)
    return _change(*names["type"]), _change(*names["level"])


def _change(old: list[str], new: list[str]) -> Change:
    kept = tuple(name for name in new if name in old)
    return Change(kept, tuple(name for name in new if name not in old), tuple(name for name in old if name not in new))


def _rows(old: Tensor, before: list[str], after: list[str], fill: float) -> Tensor:
    """(old classes, ...) -> (new classes, ...): each name's own row, or one filled with `fill`."""
    new = torch.full_like(old[0], fill)
    return torch.stack([old[before.index(name)] if name in before else new for name in after])
