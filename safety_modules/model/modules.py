"""SafetyModules: safety projector, safety tokens and safety head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from safety_modules.config import SafetyConfig
from safety_modules.model.head import HeadOutput, SafetyHead
from safety_modules.model.projector import build_projector
from safety_modules.model.tokens import SafetyTokens
from safety_modules.taxonomy import Taxonomy


@dataclass
class SafeOutput(ModelOutput):
    """`logits` (B, T, vocabulary), `type_logits` (B, types), `level_logits` (B, levels)."""

    logits: Tensor | None = None
    type_logits: Tensor | None = None
    level_logits: Tensor | None = None


class SafetyModules(nn.Module):
    """All that is trained in stage 1: safety projector, two sets of safety tokens, safety head.

    Source: PSA-VLM supplement A. Widths follow the base; several images and several turns of one exchange are judged
    one by one, and the riskiest counts (the paper has one image and one turn per exchange).
    """

    def __init__(self, config: SafetyConfig, taxonomy: Taxonomy, vision_width: int, language_width: int) -> None:
        """Args: vision_width: V. language_width: D."""
        super().__init__()
        self.projector = build_projector(config, vision_width, language_width)
        self.head_tokens = SafetyTokens(config.head_tokens, language_width)
        self.llm_tokens = SafetyTokens(config.llm_tokens, language_width)
        self.head = SafetyHead(config, language_width, len(taxonomy.types), len(taxonomy.levels))
        self.clean_index = taxonomy.clean_index

    def forward(self, features: Tensor, text: Tensor, text_mask: Tensor, first: Tensor, units: Tensor) -> HeadOutput:
        """Judge a batch of exchanges: each image with each reading of the question; the riskiest verdict counts.

        Args:
            features: (N, P, V) of all images of the batch, N from 0.
            text: (R, Q, D), embeddings of the readings of the questions (see `HeadInputs`). text_mask: (R, Q).
            first: (B, D), embedding of each exchange's first position.
            units: (U, 3): reading, image or -1, and exchange of each unit, sorted by exchange.

        Returns:
            Scores (B, types) and (B, levels).
        """
        # Without an image the projector still runs (and is masked), so that every rank has the same graph.
        projected = self.projector(features if len(features) else features.new_zeros(1, *features.shape[1:]))
        reading, image, exchange = units.unbind(1)  # (U,) each
        images = projected[image.clamp(min=0)]  # (U, P', D)
        tokens = self.head_tokens.batch(len(units)).to(images.dtype)  # (U, K, D)
        has_image = image >= 0
        image_mask = has_image[:, None].expand(-1, images.shape[1])
        mask = torch.cat([has_image.new_ones(tokens.shape[:2]), image_mask], dim=1)
        keys = torch.cat([tokens, images], dim=1)  # (U, K + P', D)
        scores = self.head(keys, mask, text[reading], text_mask[reading], first[exchange])
        return self._riskiest(scores, exchange, len(first))

    def _riskiest(self, scores: HeadOutput, exchange: Tensor, rows: int) -> HeadOutput:
        """The unit of each exchange with the highest odds against clean: (U, ...) -> (B, ...)."""
        if len(exchange) == rows:  # one unit per exchange
            return scores
        logits = scores.type_logits.detach().float()
        clean = torch.tensor(self.clean_index, device=logits.device)
        odds = logits.index_fill(1, clean, -torch.inf).logsumexp(1) - logits[:, self.clean_index]  # (U,)
        other = exchange != torch.arange(rows, device=exchange.device).unsqueeze(1)  # (B, U)
        best = odds.expand(rows, -1).masked_fill(other, -torch.inf).argmax(1)  # (B,)
        return HeadOutput(scores.type_logits[best], scores.level_logits[best])
