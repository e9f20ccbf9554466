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
    """The key projection, moved to the queries (see `SafetyHead.attend`); a module, so that ZeRO-3 gathers it."""

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # two results
        """Queries (N, Q, H, E) -> queries for unprojected keys (N, Q, H, D), and the bias of scores (N, Q, H)."""
        heads = queries.shape[2:]
        weight, bias = (value.unflatten(0, heads) for value in (self.weight, self.bias))  # (H, E, D), (H, E)
        return torch.einsum("nqhe,hed->nqhd", queries, weight), torch.einsum("nqhe,he->nqh", queries, bias)


class ValueProjection(nn.Linear):
    """The value projection, applied after the weighted mean."""

    def forward(self, means: Tensor) -> Tensor:
        """(N, Q, H, D) -> (N, Q, H, E)."""
        heads = means.shape[2]
        weight, bias = (value.unflatten(0, (heads, -1)) for value in (self.weight, self.bias))  # (H, E, D), (H, E)
        return torch.einsum("nqhd,hed->nqhe", means, weight) + bias


class SafetyHead(nn.Module):
    """Classify risk: queries attend to head tokens, safety features and the question; two linear layers classify.

    The config's `query` is one of
        joint: two learned queries (one for the type, one for the level) over tokens, features and the question.
        image: the same without the question, so the image alone is judged.
        paper: one query, the embedding of the first position of the text, over tokens and features.

    Source: PSA-VLM supplement A.4. Its text describes attention from the question to the image; its release reads query
    position 0 alone, a constant, and so never sees the question: that is `paper`. In `joint` and `image` each source is
    normalised first, because the scales of an embedding and of a projected feature differ by two orders in LLaVA-1.5.
    """

    def __init__(self, config: SafetyConfig, width: int, types: int, levels: int) -> None:
        """Args: width: D. types, levels: number of classes."""
        super().__init__()
        if width % config.attention_heads:
            raise ConfigError(
                f"safety.attention_heads: {config.attention_heads} does not divide the language width {width}; choose "
                "a divisor"
            )
        self.query_mode = config.query
        if self.query_mode != "paper":
            self.queries = nn.Parameter(torch.empty(2, width))  # (Q, D)
            nn.init.normal_(self.queries, std=width**-0.5)
            self.feature_norm = nn.LayerNorm(width)
        if self.query_mode == "joint":
            self.text_norm = nn.LayerNorm(width)
        self.heads = config.attention_heads
        self.ask = nn.Linear(width, width)
        self.key, self.value = KeyProjection(width, width), ValueProjection(width, width)
        self.merge = nn.Linear(width, width)
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
            feature_mask: (N, K + P), False for features to ignore.
            text: (N, T, D), embeddings of the question; read by `joint`.
            text_mask: (N, T), False for padding.
            first: (N, D), embedding of the text's first position; read by `paper`.
        """
        if self.query_mode == "paper":
            if first is None:
                raise ValueError("query 'paper' reads the embedding of the text's first position; give `first`")
            attended = self.attend(first.unsqueeze(1), features, feature_mask)  # (N, 1, D)
            return HeadOutput(self.type_layer(attended[:, 0]), self.level_layer(attended[:, 0]))
        keys, mask = self.feature_norm(features), feature_mask
        if self.query_mode == "joint" and text is not None:
            if text_mask is None:
                raise ValueError("a text needs a mask of its padding; give `text_mask`")
            keys = torch.cat([keys, self.text_norm(text)], dim=1)  # (N, K + P + T, D)
            mask = torch.cat([mask, text_mask], dim=1)
        attended = self.attend(self.queries.expand(len(features), -1, -1), keys, mask)  # (N, 2, D)
        return HeadOutput(self.type_layer(attended[:, 0]), self.level_layer(attended[:, 1]))

    def attend(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Multi-head attention of (N, Q, D) over (N, S, D), where `mask` (N, S) is True; zeros for a row without keys.

        The projections of keys and values are moved to the side of the queries: a query's score with a projected key is
        the projected query's score with the key, and the mean of projected values is the projected mean. So no key is
        projected, which for two queries over LLaVA's 600 keys saves 99 % of the work.
        """
        empty = ~mask.any(1, keepdim=True)  # (N, 1)
        mask = (mask | empty)[:, None, None]  # (N, 1, 1, S); a softmax over nothing is NaN: such a row is zeroed below
        # Little work, and half precision would round the scores
        with nullcontext() if keys.is_meta else torch.autocast(keys.device.type, enabled=False):
            query, keys = (x.to(self.key.weight.dtype) for x in (query, keys))
            queries = self.ask(query).unflatten(-1, (self.heads, -1))  # (N, Q, H, E)
            key_queries, key_bias = self.key(queries / math.sqrt(queries.shape[-1]))  # (N, Q, H, D), (N, Q, H)
            scores = torch.einsum("nqhd,nsd->nqhs", key_queries, keys) + key_bias.unsqueeze(-1)
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)  # (N, Q, H, S)
            attended = self.value(torch.einsum("nqhs,nsd->nqhd", weights, keys))  # (N, Q, H, E)
            return self.merge(attended.flatten(2)).masked_fill(empty.unsqueeze(-1), 0.0)  # (N, Q, D)
