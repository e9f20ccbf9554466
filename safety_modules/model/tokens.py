"""Safety tokens: learned vectors before an image, in the language model's input or in the head's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STD = 0.02


class SafetyTokens(nn.Embedding):
    """K learned vectors of width D.

    Source: PSA-VLM supplement A.3: two independent sets of 64, drawn from N(0, 0.02).
    """

    def reset_parameters(self) -> None:
        """Draw new vectors."""
        nn.init.normal_(self.weight, std=STD)

    def batch(self, rows: int) -> Tensor:
        """All K tokens for each of `rows` rows: (rows, K, D)."""
        return self(torch.arange(self.num_embeddings, device=self.weight.device)).expand(rows, -1, -1)


class TokenEmbedding:
    """Give the ids `first`..`first + K - 1` the learned vectors, every other id the base's own embedding.

    A pair of hooks on the base's input embedding, so that the base's own `forward` and `generate` read the tokens and
    the embedding keeps its size. Other ids get the base's vectors, bit for bit.

    Differs from PSA-VLM, whose release inserts the vectors in a copied forward, where the labels no longer match the
    input.
    """

    def __init__(self, tokens: SafetyTokens, first: int) -> None:
        """Args: tokens: the K vectors. first: vocabulary id of the first one."""
        self.tokens, self.first = tokens, first
        self.slots: Tensor | None = None

    def attach(self, embedding: nn.Module) -> None:
        """Register on the base's input embedding; nothing to do where K is 0."""
        if self.tokens.num_embeddings:
            embedding.register_forward_pre_hook(self._replace_ids)
            embedding.register_forward_hook(self._insert_vectors)

    def _replace_ids(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids = args[0]  # (B, T)
        slots = ids - self.first
        self.slots = torch.where((slots >= 0) & (slots < self.tokens.num_embeddings), slots, -1)
        return (ids.masked_fill(self.slots >= 0, 0), *args[1:])  # 0: an id that every embedding has

    def _insert_vectors(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        slots, self.slots = self.slots, None
        if slots is None:
            raise RuntimeError("the embedding ran without its forward pre-hook, which finds the safety tokens")
        vectors = self.tokens(slots.clamp(min=0)).to(output.dtype)  # (B, T, D)
        return torch.where((slots >= 0).unsqueeze(-1), vectors, output)  # (B, T, D)
