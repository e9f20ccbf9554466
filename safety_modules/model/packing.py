"""Packing: the rows of a batch concatenated into one sequence without padding, each attending to itself alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from safety_modules.config import ConfigError

PACKED = "packed_sdpa"


def enable_packing(base: PreTrainedModel) -> None:
    """Let the language model take packed rows: by flash attention where it is used, else by torch's SDPA, row by row.

    Raises:
        ConfigError: the language model uses another attention, or a sliding window.
    """
    config = base.config.get_text_config()
    attention = config._attn_implementation
    if getattr(config, "sliding_window", None):
        raise ConfigError(
            f"packing: the language model has a sliding window of {config.sliding_window}; train it without packing"
        )
    if attention.startswith("flash_attention"):
        return
    if attention not in ("sdpa", PACKED):
        raise ConfigError(
            f"packing: attention {attention!r} mixes the rows of a pack; use 'sdpa', 'flash_attention_2' or null"
        )
    AttentionInterface.register(PACKED, attend)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    config._attn_implementation = PACKED


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Sequence[int] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers, (1, H, T, E) each -> (1, T, H, E); without `segments` it is "sdpa".

    The cost grows with the sum of the rows' squared lengths; one block-diagonal mask would cost the square of their
    sum. Differs from flash attention's variable-length kernel only in one call per row.

    Args: segments: lengths of the rows, together T.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    rows = zip(*(x.split(list(segments), dim=2) for x in (query, key, value)))
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **others)[0] for q, k, v in rows], dim=1), None


def packed_arguments(base: PreTrainedModel, position_ids: Tensor, segments: Sequence[int]) -> dict[str, Any]:
    """The base's forward arguments that keep the rows of a pack apart.

    Args: position_ids: (1, T), from 0 in each row. segments: lengths of the rows.
    """
    if base.config.get_text_config()._attn_implementation == PACKED:
        # transformers takes a 4D mask as it is; from any other it would find the rows' ends, and wait for the device
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=position_ids.device)
        return {"position_ids": position_ids, "attention_mask": mask, "segments": tuple(segments)}
    ends = torch.tensor([0, *segments], dtype=torch.int32, device=position_ids.device).cumsum(0, dtype=torch.int32)
    longest = max(segments)
    lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {"position_ids": position_ids, **lengths}
