"""Sentences: where one ends, in any language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import regex
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

# Unicode's own class of characters that end a sentence; a full stop after a digit may be a decimal or an ordinal.
_END = regex.compile(r"(?:(?<!\p{Nd})\.|[\p{STerm}--.])[\p{STerm}\p{Pe}\p{Pf}\p{Pi}\"'*_]*\s*$", regex.VERSION1)
_LINE = regex.compile(r"\n\s*$")
_WORD = regex.compile(r"\p{L}")


def ends_sentence(text: str) -> bool:
    """Whether a sentence so far is whole: it holds a word, and ends with a mark that ends sentences, or with its line.

    Closing quotes and brackets may follow the mark. A full stop after a digit does not end it: "3." may become "3.14".
    """
    return bool(_WORD.search(text)) and bool(_END.search(text) or _LINE.search(text))


class SentenceEnd(StoppingCriteria):
    """Stops each row of a batch where its sentence or its text ends, or at its own bound.

    Attributes:
        done: (rows,) what has stopped.
        lengths: (rows,) tokens of each sentence so far.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Callable[[str], bool],
        start: int,
        limits: Sequence[int],
        eos: Sequence[int],
    ) -> None:
        """Args: start: column where the sentences begin. limits: (rows,) in tokens. eos: ids that end a text."""
        self.tokenizer, self.ends, self.start, self.limits, self.eos = tokenizer, ends, start, limits, set(eos)
        self.done, self.lengths = [False] * len(limits), [0] * len(limits)

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """(rows,) of bool."""
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            if not self.done[row]:
                self.lengths[row] = len(ids)
                ended = ids[-1] in self.eos or len(ids) >= self.limits[row]
                self.done[row] = ended or self.ends(cast(str, self.tokenizer.decode(ids, skip_special_tokens=True)))
        return torch.tensor(self.done, device=input_ids.device)
