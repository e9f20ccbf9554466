"""Drawing: tokens drawn for each row by a generator of its own, so that a row's text does not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from safety_modules.eta.search.sentences import SentenceEnd


class Draw(LogitsProcessor):
    """Leaves each row one token, drawn from its distribution as transformers' own sampling does, by the row's generator.

    A row that is done draws nothing: its generator stays where it is, as it would if the row were alone.
    """

    def __init__(self, generators: Sequence[torch.Generator], end: SentenceEnd) -> None:
        """Args: generators: one for each row."""
        self.generators, self.end = generators, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, V) -> the same, minus infinity but for one token."""
        chances, done = scores.softmax(-1), self.end.done
        blank = torch.zeros(1, 1, dtype=torch.long, device=scores.device)
        tokens = [
            blank if done[row] else torch.multinomial(chances[row : row + 1], 1, generator=generator)
            for row, generator in enumerate(self.generators)
        ]
        return torch.full_like(scores, -torch.inf).scatter_(1, torch.cat(tokens), 0.0)


def draws(
    generators: Sequence[torch.Generator], end: SentenceEnd, temperature: float, top_k: int
) -> LogitsProcessorList:
    """What `generate` does with logits when it samples: divide by the temperature, keep the top k, draw."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    steps.append(Draw(generators, end))
    return steps
