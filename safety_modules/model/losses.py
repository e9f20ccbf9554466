"""Losses: outputs and labels -> named scalars. Pure functions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from safety_modules.prompt.padding import IGNORE


class Losses(NamedTuple):
    """Scalars: `loss` is minimised, the others are its terms before weighting."""

    loss: Tensor
    lm: Tensor
    type: Tensor
    level: Tensor


def next_tokens(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions whose logits a loss needs, so that the output layer runs on no others.

    Args: labels: (B, T), -100 for tokens that are not supervised.
    Returns: positions (M,) at which any row predicts a supervised token, and those tokens, (B, M), or -100.
    """
    target = labels[:, 1:]  # (B, T - 1): position t predicts t + 1
    keep = (target != IGNORE).any(0).nonzero().squeeze(1)  # (M,)
    return keep, target[:, keep]


def lm_loss(logits: Tensor, targets: Tensor, tokens: Tensor | float | None = None) -> Tensor:
    """Cross-entropy of the next token, in nats.

    Args:
        logits: (B, M, vocabulary), at the positions that `next_tokens` returns.
        targets: (B, M), from there.
        tokens: divisor, the supervised tokens of the whole optimizer step; None for those of this batch.
    """
    logits, targets = logits.flatten(0, 1).float(), targets.flatten()
    total = functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return total / ((targets != IGNORE).sum().clamp(min=1) if tokens is None else tokens)


def safety_losses(
    logits: Tensor | None,
    targets: Tensor | None,
    type_logits: Tensor,
    level_logits: Tensor,
    risk_type: Tensor,
    risk_level: Tensor,
    head_weight: float,
    tokens: Tensor | float | None = None,
) -> Losses:
    """L = lm + head_weight * (type + level).

    Source: PSA-VLM section 3.3 gives the sum; the factor, 10, is only in the release.

    Args:
        logits, targets: see `lm_loss`; None where the head alone was run: lm is then 0.
        type_logits: (B, types). level_logits: (B, levels).
        risk_type, risk_level: (B,), class indices.
        head_weight: factor of the two head terms, each a mean over the batch, from 0.
        tokens: see `lm_loss`.
    """
    lm = type_logits.new_zeros(())
    if logits is not None:
        if targets is None:
            raise ValueError("logits need targets; give them, or no logits where the head alone was run")
        lm = lm_loss(logits, targets, tokens)
    type_loss = functional.cross_entropy(type_logits.float(), risk_type)
    level_loss = functional.cross_entropy(level_logits.float(), risk_level)
    return Losses(lm + head_weight * (type_loss + level_loss), lm, type_loss, level_loss)
