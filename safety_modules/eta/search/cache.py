"""Cache: spans of a key-value cache, cropped, padded again and copied, so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

CacheSpan = tuple[int, int, int]  # row of a cache, first and last column (exclusive)


def can_crop(cache: object, model: nn.Module) -> bool:
    """Whether every layer holds all its keys, so that the cache can be cropped: no sliding window, no running state.

    Nor may the model keep positions of its last batch beside the cache, as Qwen2-VL and its kin do.
    """
    whole = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
    return whole and not any(hasattr(module, "rope_deltas") for module in model.modules())


def crop_cache(cache: Cache, cache_spans: Sequence[CacheSpan], copies: int = 1) -> DynamicCache:
    """A new cache of spans of an old one, padded on the left, each `copies` times in a row.

    Keys keep the positions that they were computed at: a span must hold all of a row but its padding, from its start.
    """
    length, fresh = max(end - start for _, start, end in cache_spans), DynamicCache()

    def moved(states: Tensor) -> Tensor:  # (B, H, T, D) -> (spans x copies, H, length, D)
        rows = [F.pad(states[row, :, a:b], (0, 0, length - (b - a), 0)) for row, a, b in cache_spans]
        return torch.stack(rows).repeat_interleave(copies, 0)

    for i, layer in enumerate(cast(list[Any], cache.layers)):  # DynamicLayer each: see `can_crop`
        fresh.update(moved(layer.keys), moved(layer.values), i)
    return fresh
