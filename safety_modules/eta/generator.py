"""Speaker: a vision language model of transformers that answers batches of exchanges."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Cache,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteria,
    TextIteratorStreamer,
)
from transformers.generation import GenerateDecoderOnlyOutput

from safety_modules.eta.evaluators.loading import readable
from safety_modules.eta.evaluators.protocols import EtaError, Messages
from safety_modules.prompt.images import load_image
from safety_modules.prompt.messages import ProcessingError, read_messages

GAP = "\u200b"
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
}  # whatever the model's own settings are: its cache then has a row for each exchange
PROBE = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


@dataclass(frozen=True)
class Plain:
    """Greedy answers, and what their prompts left behind.

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
    """Stops a model whose answer nobody reads any more."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """(B,) of bool."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class AnswerGenerator:
    """Any `AutoModelForImageTextToText` with its processor; no safety modules are needed.

    A text of a user that holds the name of a special token gets a zero-width space in that name, so that it stays text.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """Args: processor: with a chat template."""
        if not processor.chat_template:
            raise EtaError(
                "the model's processor has no chat template; give one that has, or set processor.chat_template"
            )
        self.model, self.processor, self.tokenizer = model.eval(), processor, processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        self.special = sorted({*special, *self.tokenizer.all_special_tokens}, key=len, reverse=True)
        image = (
            self.tokenizer.convert_tokens_to_ids(processor.image_token) if hasattr(processor, "image_token") else None
        )
        self.suppress = [image] if image is not None and image < model.get_output_embeddings().weight.shape[0] else []
        self.shares: bool | None = None  # whether a cut cache gives this model's own logits; None: not tried yet

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype | str = "auto"
    ) -> AnswerGenerator:
        """Load a folder or a model of the hub; safetensors only, no remote code.

        Raises:
            EtaError: it cannot be read.
        """
        safe = {"trust_remote_code": False}
        with readable(folder):
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, use_safetensors=True, **safe)
            processor = AutoProcessor.from_pretrained(folder, **safe)
        return cls(model.to(device), processor)

    @property
    def eos(self) -> list[int]:
        """Ids that end an answer."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return list(ids) if isinstance(ids, (list, tuple)) else [ids]

    def inputs(self, asks: Sequence[Messages]) -> dict[str, Tensor]:
        """What the model reads, padded on the left; always `input_ids` and `attention_mask`, (B, T)."""
        chats = [self._chat(ask, f"exchange {i}") for i, ask in enumerate(asks)]
        tensors = {"return_dict": True, "return_tensors": "pt", "processor_kwargs": {"padding": True}}
        try:
            batch = self.processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, **tensors)
        except TemplateError as error:
            raise ProcessingError(f"the model's chat template refuses an exchange's turns: {error}") from error
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def prefix(self, text: str) -> list[int]:
        """Ids of the beginning of an answer, as the template places one."""
        if not text:
            return []
        said = [*PROBE, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        prompt = self.processor.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True)
        whole = self.processor.apply_chat_template(said, tokenize=False, continue_final_message=True)
        asked, spoken = (self.tokenizer.encode(part, add_special_tokens=False) for part in (prompt, whole))
        if spoken[: len(asked)] == asked:
            return spoken[len(asked) :]
        return self.tokenizer.encode(text, add_special_tokens=False)

    def plain(self, asks: Sequence[Messages], max_new_tokens: int) -> Plain:
        """Greedy answers of a batch."""
        inputs = self.inputs(asks)
        output = self._generate(inputs, max_new_tokens)
        start = 0 if "inputs_embeds" in inputs else inputs["input_ids"].shape[1]
        said = [self._until_end(row) for row in output.sequences[:, start:].tolist()]
        ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
        return Plain([self.text(row) for row in said], [len(row) for row in said], ids, output.past_key_values)

    def stream(self, ask: Messages, max_new_tokens: int) -> Iterator[str]:
        """A greedy answer, piece by piece; the model stops when the pieces are no longer asked for."""
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        left, failed = threading.Event(), []

        def work() -> None:
            try:
                self._generate(
                    self.inputs([ask]), max_new_tokens, streamer=streamer, stopping_criteria=[StopOnCancel(left)]
                )
            except Exception as error:  # noqa: BLE001 - raised where the pieces are asked for
                failed.append(error)
                streamer.end()

        worker = threading.Thread(target=work, daemon=True, name="eta stream")
        worker.start()
        try:
            begun, held = False, ""  # an answer is given without the spaces around it
            for piece in streamer:
                piece = held + piece if begun else piece.lstrip()
                ready = piece.rstrip()
                begun, held = begun or bool(ready), piece[len(ready) :]
                if ready:
                    yield ready
        finally:
            left.set()
            worker.join()
        if failed:
            raise failed[0]

    def extend(self, inputs: dict[str, Tensor], said: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Inputs (B, T, ...) with each row's own further tokens behind it, padded on the left anew."""
        mask, width = inputs["attention_mask"].bool(), inputs["attention_mask"].shape[1]
        length = max(int(row.sum()) + len(more) for row, more in zip(mask, said))
        extended = dict(inputs)
        for name, value in inputs.items():
            if value.ndim < 2 or value.shape[:2] != (len(said), width):
                continue  # images
            rows = []
            for row, kept, more in zip(value, mask, said):
                tail = self._further(name, torch.tensor(more, dtype=torch.long, device=value.device)).to(value.dtype)
                whole = torch.cat([row[kept], tail])
                blank = whole.new_full((length - len(whole), *whole.shape[1:]), self._blank(name))
                rows.append(torch.cat([blank, whole]))
            extended[name] = torch.stack(rows)
        return extended

    def _further(self, name: str, ids: Tensor) -> Tensor:
        """What a token of an answer is to each input: itself, its embedding, or a mask's 1; kinds of tokens are 0 for text."""
        if name == "input_ids":
            return ids
        if name == "inputs_embeds":
            return self.model.get_input_embeddings()(ids)
        return torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids)

    def _blank(self, name: str) -> int:
        return self.tokenizer.pad_token_id if name == "input_ids" else 0

    @staticmethod
    def read(inputs: dict[str, object]) -> dict[str, object]:
        """What `generate` takes of the inputs: no ids where there are embeddings; it then returns new tokens alone."""
        return {name: value for name, value in inputs.items() if name != "input_ids" or "inputs_embeds" not in inputs}

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    @torch.no_grad()
    def _generate(self, inputs: dict[str, Tensor], max_new_tokens: int, **options: object) -> GenerateDecoderOnlyOutput:
        """Greedy; `options` are for following it."""
        inputs = self.read(inputs)
        suppress = {"suppress_tokens": self.suppress} if self.suppress else {}
        return self.model.generate(
            **inputs, **suppress, **options, **GREEDY, max_new_tokens=max_new_tokens, return_dict_in_generate=True
        )

    def _until_end(self, ids: list[int]) -> list[int]:
        """An answer with its end token, without what pads it."""
        ends = [i for i, token in enumerate(ids) if token in self.eos]
        return ids[: ends[0] + 1] if ends else ids

    def _chat(self, ask: Messages, row: str) -> list[dict]:
        """Messages as the processor takes them: images loaded, names of special tokens parted."""
        structure, texts, _, images = read_messages(ask, "", row)
        texts, images = iter(texts), iter(images)
        return [
            {
                "role": role,
                "content": [
                    {"type": "image", "image": load_image(next(images))}
                    if part == "image"
                    else {"type": "text", "text": self._parted(next(texts))}
                    for part in parts
                ],
            }
            for role, parts in structure
        ]

    def _parted(self, text: str) -> str:
        for name in self.special:
            text = text.replace(name, name[:1] + GAP + name[1:])
        return text
