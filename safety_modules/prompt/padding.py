"""Padding: rows of different lengths -> one tensor, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = -100  # a label that no loss counts


def pad(row: Tensor, length: int, fill: int, side: str) -> Tensor:
    """(T,) -> (length,)."""
    padding = torch.full((length - len(row),), fill, dtype=row.dtype)
    return torch.cat([row, padding] if side == "right" else [padding, row])


def pack(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor | tuple[int, ...]]:
    """Rows of input_ids and labels (T,) -> input_ids, labels, position_ids (1, sum of T), and segments, their lengths.

    The first label of each row must be IGNORE, because the row before would predict it; a row begins with its prompt.
    """
    packed = {name: torch.cat([row[name] for row in rows]).unsqueeze(0) for name in ("input_ids", "labels")}
    lengths = tuple(len(row["input_ids"]) for row in rows)
    return {**packed, "position_ids": torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0), "segments": lengths}


def join_images(images: list[Tensor]) -> Tensor:
    """Concatenate (n, 3, H, W), or (n, tiles, 3, H, W) padded to the most tiles."""
    if images[0].dim() == 4:
        return torch.cat(images)
    tiles = max(image.shape[1] for image in images)
    return torch.cat([functional.pad(image, (0, 0, 0, 0, 0, 0, 0, tiles - image.shape[1])) for image in images])
