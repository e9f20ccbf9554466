"""Safety head: cross-attention over safety tokens, safety features and the question -> risk type and risk level."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from safety_modules.config import ConfigError, SafetyConfig


class HeadOutput(NamedTuple):
    """Scores before softmax: `type_logits` (N, types) and `level_logits` (N, levels)."""

    type_logits: Tensor
    level_logits: Tensor


class KeyProjection(nn.Linear):
    """The keys' linear layer, applied to the queries in its transpose; a module, so that ZeRO-3 gathers its weights."""

    def forward(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, Q, H, E) -> what they look for in keys (N, Q, H, D), and what the bias adds to each score (N, Q, H)."""
        weight, bias = (value.unflatten(0, asked.shape[2:]) for value in (self.weight, self.bias))  # (H, E, D), (H, E)
        return torch.einsum("nqhe,hed->nqhd", asked, weight), torch.einsum("nqhe,he->nqh", asked, bias)


class ValueProjection(nn.Linear):
    """The values' linear layer, applied to their weighted means."""

    def forward(self, mean: Tensor) -> Tensor:
        """(N, Q, H, D) -> (N, Q, H, E)."""
        weight, bias = (
            value.unflatten(0, (mean.shape[2], -1)) for value in (self.weight, self.bias)
        )  # (H, E, D), (H, E)
        return torch.einsum("nqhd,hed->nqhe", mean, weight) + bias


class SafetyHead(nn.Module):
    """Classify risk: queries attend to head tokens, safety features and the question; two linear layers read them.

    The config's `query` is one of
        joint: two learned queries (one for the type, one for the level) over tokens, features and the question.
        image: the same without the question, so the image alone is judged.
        paper: one query, the embedding of the first position of the text, over tokens and features.

    Source: PSA-VLM supplement A.4. Its text describes attention from the question to the image; its release reads query
    position 0 alone, a constant, and so never sees the question: that is `paper`. In `joint` and `image` each source is
    normalised first, because the scale of an embedding and of a projected feature differ by two orders in LLaVA-1.5.
    """

    def __init__(self, config: SafetyConfig, width: int, types: int, levels: int) -> None:
        """Args: width: D. types, levels: number of classes."""
        super().__init__()
        if width % config.attention_heads:
            raise ConfigError(
                f"safety.attention_heads: {config.attention_heads} does not divide the language width {width}; choose a divisor"
            )
        self.query_mode = config.query
        if self.query_mode != "paper":
            self.queries = nn.Parameter(torch.empty(2, width))  # (Q, D)
            nn.init.normal_(self.queries, std=width**-0.5)
            self.feature_norm = nn.LayerNorm(width)
        if self.query_mode == "joint":
            self.text_norm = nn.LayerNorm(width)
        self.heads = config.attention_heads
        kinds = (nn.Linear, KeyProjection, ValueProjection, nn.Linear)
        self.ask, self.key, self.value, self.merge = (kind(width, width) for kind in kinds)
        self.type_layer = nn.Linear(width, types)
        self.level_layer = nn.Linear(width, levels)

    def forward(
        self,
        features: Tensor,
        feature_mask: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        first: Tensor | None = None,
    ) -> HeadOutput:
        """Score types and levels.

        Args:
            features: (N, K + P, D), head tokens then safety features.
            feature_mask: (N, K + P), True where a feature is there.
            text: (N, T, D), embeddings of the question; read by `joint`.
            text_mask: (N, T), True where the question is.
            first: (N, D), embedding of the text's first position; read by `paper`.
        """
        if self.query_mode == "paper":
            query = first.unsqueeze(1)  # (N, 1, D)
            read = self._attend(query, features, feature_mask)
            return HeadOutput(self.type_layer(read[:, 0]), self.level_layer(read[:, 0]))
        keys, mask = self.feature_norm(features), feature_mask
        if self.query_mode == "joint" and text is not None:
            keys = torch.cat([keys, self.text_norm(text)], dim=1)  # (N, K + P + T, D)
            mask = torch.cat([mask, text_mask], dim=1)
        query = self.queries.expand(len(features), -1, -1)  # (N, 2, D)
        read = self._attend(query, keys, mask)
        return HeadOutput(self.type_layer(read[:, 0]), self.level_layer(read[:, 1]))

    def _attend(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """(N, Q, D) queries over the (N, S, D) keys that `mask` (N, S) admits -> (N, Q, D). A row without keys reads zeros.

        Multi-head attention, with the projections of keys and values moved to the side of the queries: a query's score with a
        projected key is the projected query's score with the key, and the mean of projected values is the projected mean. So no
        key is projected, which for two queries over LLaVA's 600 keys spares 99 % of the work.
        """
        empty = ~mask.any(1, keepdim=True)  # (N, 1)
        seen = (mask | empty)[
            :, None, None
        ]  # (N, 1, 1, S); a softmax over nothing is NaN: such a row sees all, then zeros
        kind = keys.device.type  # little work, and half precision would round the scores
        with nullcontext() if keys.is_meta else torch.autocast(kind, enabled=False):
            query, keys = (x.to(self.key.weight.dtype) for x in (query, keys))
            asked = self.ask(query).unflatten(-1, (self.heads, -1)) / math.sqrt(
                keys.shape[-1] // self.heads
            )  # (N, Q, H, E)
            probe, shift = self.key(asked)  # (N, Q, H, D), (N, Q, H)
            scores = torch.einsum("nqhd,nsd->nqhs", probe, keys) + shift.unsqueeze(-1)
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)  # (N, Q, H, S)
            read = self.value(torch.einsum("nqhs,nsd->nqhd", weights, keys))  # (N, Q, H, E)
            return self.merge(read.flatten(2)).masked_fill(empty.unsqueeze(-1), 0.0)  # (N, Q, D)
