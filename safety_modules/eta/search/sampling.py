"""Sampling with a random generator for each row, so that a row's text does not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from safety_modules.eta.search.sentences import SentenceEnd


class SeededSampling(LogitsProcessor):
    """Leaves each row one token, sampled from its distribution as transformers samples, with the row's generator.

    A row that is done samples nothing: its generator stays as it is, as if the row were alone.
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


def sampling_processors(
    generators: Sequence[torch.Generator], end: SentenceEnd, temperature: float, top_k: int
) -> LogitsProcessorList:
    """What `generate` does with logits when it samples: temperature, top k, one token."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    steps.append(SeededSampling(generators, end))
    return steps
