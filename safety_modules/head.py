"""Safety head: cross-attention over safety tokens, safety features and the question -> risk type and risk level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from safety_modules.config import ConfigError, SafetyConfig


class HeadOutput(NamedTuple):
    """Scores before softmax: `type_logits` (N, types) and `level_logits` (N, levels)."""

    type_logits: Tensor
    level_logits: Tensor


class SafetyHead(nn.Module):
    """Classify risk: queries attend to head tokens, safety features and the question; two linear layers read them.

    The config's `query` is one of
        joint: two learned queries (one for the type, one for the level) over tokens, features and the question.
        image: the same without the question, so the picture alone is judged.
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
        self.ask, self.key, self.value, self.merge = (nn.Linear(width, width) for _ in range(4))
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
        """(N, Q, D) queries over the (N, S, D) keys that `mask` (N, S) admits -> (N, Q, D). A row without keys reads zeros."""
        empty = ~mask.any(1, keepdim=True)  # (N, 1)
        seen = (mask | empty)[:, None, None]  # (N, 1, 1, S); a softmax over nothing is NaN: such a row sees all, then zeros
        split = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.ask(query), self.key(keys), self.value(keys)))
        read = functional.scaled_dot_product_attention(*split, attn_mask=seen)  # (N, H, Q, D / H)
        return self.merge(read.transpose(1, 2).flatten(2)).masked_fill(empty.unsqueeze(-1), 0.0)  # (N, Q, D)
