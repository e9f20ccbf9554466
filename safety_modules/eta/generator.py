"""AnswerGenerator: what ETA needs of a model: batches of greedy answers, streams, and inputs to continue."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Queue
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

# Whatever the model's own settings are: its cache then has a row for each exchange.
GREEDY = {"do_sample": False, "num_beams": 1}
INCOMPLETE = "\ufffd"  # what a character is decoded as while its last bytes are missing


@dataclass(frozen=True)
class GreedyAnswers:
    """Greedy answers of a batch, and what can be continued from their prompts.

    Attributes:
        answers: texts.
        tokens: how many tokens each has.
        ids: of each prompt, without padding.
        cache: the keys and values of all rows.
    """

    answers: list[str]
    tokens: list[int]
    ids: list[list[int]]
    cache: Cache


class StopOnCancel(StoppingCriteria):
    """Stops a generation whose answer is not needed any more."""

    def __init__(self, cancelled: threading.Event) -> None:
        self.cancelled = cancelled

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """(B,) of bool."""
        return torch.full((len(input_ids),), self.cancelled.is_set(), device=input_ids.device)


class IdStreamer(BaseStreamer):
    """Hands over the ids of one answer as they are generated; iterating waits for them."""

    def __init__(self, prompt: int) -> None:
        """Args: prompt: how many ids come first that are not the answer's."""
        self.prompt = prompt
        self.queue: Queue[int | None] = Queue()

    def put(self, value: Tensor) -> None:
        """Called by `generate`: first the prompt's ids, where it is given ids, then each new one."""
        for token in value.flatten().tolist():
            if self.prompt:
                self.prompt -= 1
            else:
                self.queue.put(token)

    def end(self) -> None:
        """Called by `generate` at the end."""
        self.queue.put(None)

    def __iter__(self) -> Iterator[int]:
        return iter(self.queue.get, None)


class AnswerGenerator(ABC):
    """A model that answers requests; a subclass defines what a request is and what the model reads of it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Args: model: any with `generate`. tokenizer: its own."""
        self.model, self.tokenizer = model.eval(), tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.special_ids = {*tokenizer.all_special_ids, *(token for token, about in added if about.special)}
        # Whether a cropped cache continues as this model continues the whole text; None: not tried yet.
        self.cache_can_be_shared: bool | None = None

    @abstractmethod
    def inputs(self, requests: Sequence[Any]) -> dict[str, Tensor]:
        """What the model reads, padded on the left: `input_ids` and `attention_mask` (B, T), and inputs of its own.

        With `inputs_embeds` (B, T, D) the ids are for this class alone.
        """

    @abstractmethod
    def prefix(self, text: str) -> list[int]:
        """Ids of the beginning of an answer; none of an empty text."""

    @property
    @abstractmethod
    def suppress(self) -> list[int]:
        """Ids that no answer may contain."""

    @property
    def eos(self) -> list[int]:
        """Ids that end an answer."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return list(ids) if isinstance(ids, (list, tuple)) else [ids]

    def greedy(self, requests: Sequence[Any], max_new_tokens: int) -> GreedyAnswers:
        """Greedy answers of a batch."""
        inputs = self.inputs(requests)
        output = self._generate(inputs, max_new_tokens)
        start = 0 if "inputs_embeds" in inputs else inputs["input_ids"].shape[1]
        rows = [self._until_end(row) for row in output.sequences[:, start:].tolist()]
        ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
        return GreedyAnswers([self.text(row) for row in rows], [len(row) for row in rows], ids, output.past_key_values)

    def stream(self, request: Any, max_new_tokens: int) -> Iterator[str]:
        """A greedy answer, piece by piece; the pieces, joined, are the answer that `greedy` gives.

        The model stops when the pieces are no longer asked for.
        """
        inputs = self.inputs([request])
        streamer = IdStreamer(0 if "inputs_embeds" in inputs else inputs["input_ids"].shape[1])
        cancelled = threading.Event()
        failures: list[Exception] = []

        def work() -> None:
            try:
                self._generate(inputs, max_new_tokens, streamer=streamer, stopping_criteria=[StopOnCancel(cancelled)])
            except Exception as error:  # noqa: BLE001 - raised where the pieces are asked for
                failures.append(error)
                streamer.end()

        worker = threading.Thread(target=work, daemon=True, name="answer stream")
        worker.start()
        ids: list[int] = []
        given = ""
        try:
            for token in streamer:
                ids.append(token)
                ready = self.settled_text(ids)
                if len(ready) > len(given):
                    yield ready[len(given) :]
                    given = ready
        finally:
            cancelled.set()
            worker.join()
        if failures:
            raise failures[0]
        if rest := self.text(ids)[len(given) :]:
            yield rest

    def extend(self, inputs: dict[str, Tensor], answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Inputs (B, T, ...) with each row's own further ids after it, padded on the left again."""
        mask, width = inputs["attention_mask"].bool(), inputs["attention_mask"].shape[1]
        length = max(int(row.sum()) + len(ids) for row, ids in zip(mask, answers))
        extended = dict(inputs)
        for name, value in inputs.items():
            if value.ndim < 2 or value.shape[:2] != (len(answers), width):
                continue  # images
            fill = self.tokenizer.pad_token_id if name == "input_ids" else 0
            rows = []
            for row, real, ids in zip(value, mask, answers):
                tail = self._values_of(name, torch.tensor(ids, dtype=torch.long, device=value.device)).to(value.dtype)
                whole = torch.cat([row[real], tail])
                rows.append(torch.cat([whole.new_full((length - len(whole), *whole.shape[1:]), fill), whole]))
            extended[name] = torch.stack(rows)
        return extended

    def _values_of(self, name: str, ids: Tensor) -> Tensor:
        """What an answer's tokens are in an input: ids, their embeddings, or a mask's 1; token types are 0 for text."""
        if name == "input_ids":
            return ids
        if name == "inputs_embeds":
            return self.model.get_input_embeddings()(ids)
        return torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids)

    @staticmethod
    def generate_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs for `generate`: no ids where there are embeddings; it then returns the new tokens alone."""
        return {name: value for name, value in inputs.items() if name != "input_ids" or "inputs_embeds" not in inputs}

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones and the spaces around it."""
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}  # cleaning changes earlier text
        return cast(str, self.tokenizer.decode(list(ids), **options)).strip()

    def settled_text(self, ids: Sequence[int]) -> str:
        """The part of `text` that no further token can change.

        A tokenizer with byte fallback decodes a run of byte tokens as one, so a run at the end is left out. A special
        token does not end a run, as it is not decoded.
        """
        end = len(ids)
        while end and (ids[end - 1] in self.special_ids or self._is_byte(ids[end - 1])):
            end -= 1
        return self.text(ids[:end]).rstrip(INCOMPLETE).rstrip()

    @torch.no_grad()
    def _generate(self, inputs: dict[str, Tensor], max_new_tokens: int, **options: object) -> GenerateDecoderOnlyOutput:
        """Greedy; `options` observe it or stop it."""
        suppress = {"suppress_tokens": self.suppress} if self.suppress else {}
        bounds = {**GREEDY, "max_new_tokens": max_new_tokens, "return_dict_in_generate": True}
        return self.model.generate(**self.generate_inputs(inputs), **suppress, **options, **bounds)

    def _until_end(self, ids: list[int]) -> list[int]:
        """An answer with its end token, without what pads it."""
        ends = [place for place, token in enumerate(ids) if token in self.eos]
        return ids[: ends[0] + 1] if ends else ids

    def _is_byte(self, token: int) -> bool:
        """Whether a token is one byte, as <0xE4>."""
        return re.fullmatch("<0x..>", cast("str | None", self.tokenizer.convert_ids_to_tokens(token)) or "") is not None
