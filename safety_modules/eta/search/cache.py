"""Cache: rows of a key-value cache, cut, padded anew and copied, so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

Stretch = tuple[int, int, int]  # row of a cache, first and last column (exclusive)


def can_cut(cache: object, model: nn.Module) -> bool:
    """Whether every layer holds all its keys, so that some can be left out: no sliding window, no running state.

    Nor may the model keep positions of its last batch beside the cache, as Qwen2-VL and its kin do.
    """
    whole = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
    return whole and not any(hasattr(module, "rope_deltas") for module in model.modules())


def cut(cache: Cache, stretches: Sequence[Stretch], copies: int = 1) -> DynamicCache:
    """A new cache of stretches of an old one, padded on the left, each `copies` times in a row.

    Keys keep the positions that they were computed at: a stretch must hold all of a row but its padding, from its start.
    """
    length, fresh = max(end - start for _, start, end in stretches), DynamicCache()

    def moved(states: Tensor) -> Tensor:  # (B, H, T, D) -> (stretches x copies, H, length, D)
        rows = [F.pad(states[row, :, a:b], (0, 0, length - (b - a), 0)) for row, a, b in stretches]
        return torch.stack(rows).repeat_interleave(copies, 0)

    for i, layer in enumerate(cache.layers):
        fresh.update(moved(layer.keys), moved(layer.values), i)
    return fresh
