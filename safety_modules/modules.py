"""SafetyModules: safety projector, safety tokens and safety head, and what they read of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from safety_modules.config import SafetyConfig
from safety_modules.head import HeadOutput, SafetyHead
from safety_modules.projector import build_projector
from safety_modules.taxonomy import Taxonomy
from safety_modules.tokens import SafetyTokens


class SafetyModules(nn.Module):
    """All that is trained in stage 1: safety projector, two sets of safety tokens, safety head.

    Source: PSA-VLM supplement A. Widths follow the base; several pictures and several turns of one exchange are judged one by
    one, and the riskiest counts (the paper has one picture and one turn in each exchange).
    """

    def __init__(self, config: SafetyConfig, taxonomy: Taxonomy, vision_width: int, language_width: int) -> None:
        """Args: vision_width: V. language_width: D."""
        super().__init__()
        self.projector = build_projector(config, vision_width, language_width)
        self.head_tokens = SafetyTokens(config.head_tokens, language_width)
        self.llm_tokens = SafetyTokens(config.llm_tokens, language_width)
        self.head = SafetyHead(config, language_width, len(taxonomy.types), len(taxonomy.levels))
        self.clean_index = taxonomy.clean_index

    def forward(
        self, features: Tensor, owner: Tensor, text: Tensor, text_mask: Tensor, first: Tensor, reader: Tensor, rows: int
    ) -> HeadOutput:
        """Judge a batch of exchanges: each picture with each reading of the question, and the riskiest verdict counts.

        Args:
            features: (N, P, V) of all pictures of the batch, N from 0.
            owner: (N,), the exchange of each picture.
            text: (R, T, D), embeddings of the readings of the questions (see `readings`). text_mask: (R, T).
            first: (R, D), embedding of each exchange's first position.
            reader: (R,), the exchange of each reading.
            rows: B, the number of exchanges.

        Returns:
            Scores (B, types) and (B, levels).
        """
        # Without a picture the projector still takes part (times zero), so that every rank has the same graph.
        seen = self.projector(features if len(features) else features.new_zeros(1, *features.shape[1:]))  # (N, P', D)
        reading, picture = (reader.unsqueeze(1) == owner.unsqueeze(0)).nonzero(as_tuple=True)  # (U0,) each
        bare = torch.ones_like(reader, dtype=torch.bool).index_fill(0, reading, False).nonzero().squeeze(1)  # without a picture
        blank = seen[:1].expand(len(bare), -1, -1) * 0.0
        views = torch.cat([seen[picture], blank])  # (U, P', D)
        there = torch.arange(len(views), device=owner.device) < len(picture)  # (U,)
        unit = torch.cat([reading, bare])  # (U,) the reading of each unit to judge
        tokens = self.head_tokens.batch(len(unit)).to(views.dtype)  # (U, K, D)
        mask = torch.cat([there.new_ones(tokens.shape[:2]), there[:, None].expand(-1, views.shape[1])], dim=1)
        keys = torch.cat([tokens, views], dim=1)  # (U, K + P', D)
        scores = self.head(keys, mask, text[unit], text_mask[unit], first[unit])
        return self._riskiest(scores, reader[unit], rows)

    def _riskiest(self, scores: HeadOutput, unit: Tensor, rows: int) -> HeadOutput:
        """The unit of each exchange with the highest odds against clean: (U, ...) -> (B, ...)."""
        if len(unit) == rows:  # one unit in each exchange: only put them in order
            order = unit.argsort()
            return HeadOutput(scores.type_logits[order], scores.level_logits[order])
        logits = scores.type_logits.detach().float()
        clean = logits[:, self.clean_index]
        risky = logits.index_fill(1, torch.tensor(self.clean_index, device=unit.device), -torch.inf).logsumexp(1)
        odds = (
            (risky - clean).expand(rows, -1).masked_fill(unit != torch.arange(rows, device=unit.device).unsqueeze(1), -torch.inf)
        )  # (B, U)
        best = odds.argmax(1)  # (B,)
        return HeadOutput(scores.type_logits[best], scores.level_logits[best])


def readings(question_mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the head reads of each question: the user's turn; of several turns all together, and then each alone.

    So a harmless turn cannot dilute a harmful one, and what is spread over turns is still seen.

    Args: question_mask: (B, T), the number of the turn on the users' texts, from 1; 0 elsewhere.
    Returns: the exchange of each reading (R,), and what it reads (R, T), True.
    """
    turns = question_mask.amax(1)  # (B,)
    count = torch.where(turns > 1, turns + 1, 1)  # (B,) readings
    reader = torch.arange(len(turns), device=turns.device).repeat_interleave(count)  # (R,)
    number = torch.arange(len(reader), device=turns.device) - (count.cumsum(0) - count)[reader]  # (R,) 0: all turns
    marks, number = question_mask[reader], number.unsqueeze(1)
    return reader, torch.where(number == 0, marks > 0, marks == number)


def gather_marked(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the marked tokens of each row to the front, and cut the rest.

    Args: ids, mask: (B, T).
    Returns: ids (B, Q) and mask (B, Q), Q the most marks in a row.
    """
    width = int(mask.sum(1).max())
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, :width]  # (B, Q)
    return ids.gather(1, order), mask.gather(1, order)
