"""StockGenerator: any vision language model of transformers with its processor; no safety modules are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from safety_modules.eta.evaluators.loading import readable
from safety_modules.eta.evaluators.protocols import EtaError, Messages
from safety_modules.eta.generator import AnswerGenerator
from safety_modules.prompt.images import load_image
from safety_modules.prompt.messages import ProcessingError, read_messages

ZERO_WIDTH = "\u200b"
SHORTEST: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]


class StockGenerator(AnswerGenerator):
    """Answers messages with any `AutoModelForImageTextToText`.

    The name of a special token in a user's text gets a zero-width space inside it, so that it stays text.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """Args: processor: with a chat template."""
        if not processor.chat_template:
            raise EtaError("the processor has no chat template; give one that has, or set processor.chat_template")
        super().__init__(model, processor.tokenizer)
        self.processor = processor
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        self.special = sorted({*special, *self.tokenizer.all_special_tokens}, key=len, reverse=True)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype | str = "auto"
    ) -> StockGenerator:
        """Load a folder or a model of the hub; safetensors only, no remote code.

        Raises:
            EtaError: it cannot be read.
        """
        with readable(folder):
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        return cls(model.to(device), processor)  # type: ignore[arg-type]

    @property
    def suppress(self) -> list[int]:
        """The image placeholder, where the output layer can score it."""
        if not hasattr(self.processor, "image_token"):
            return []
        image = cast("int | None", self.tokenizer.convert_tokens_to_ids(self.processor.image_token))
        return [image] if image is not None and image < self.model.get_output_embeddings().weight.shape[0] else []

    def inputs(self, requests: Sequence[Messages]) -> dict[str, Tensor]:
        """What the model reads of messages, padded on the left."""
        chats = [self._chat(messages, f"exchange {i}") for i, messages in enumerate(requests)]
        tensors: dict[str, Any] = {"return_tensors": "pt", "processor_kwargs": {"padding": True}}
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **tensors}
        try:
            batch: Any = self.processor.apply_chat_template(chats, **options)
        except TemplateError as error:
            raise ProcessingError(f"the model's chat template refuses an exchange's turns: {error}") from error
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def prefix(self, text: str) -> list[int]:
        """Ids of the beginning of an answer, as the template places one."""
        if not text:
            return []
        started: list[dict[str, Any]] = [*SHORTEST, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        prompt = self.processor.apply_chat_template(SHORTEST, tokenize=False, add_generation_prompt=True)
        whole = self.processor.apply_chat_template(started, tokenize=False, continue_final_message=True)
        prompt_ids, ids = (self.tokenizer.encode(part, add_special_tokens=False) for part in (prompt, whole))
        if ids[: len(prompt_ids)] == prompt_ids:
            return ids[len(prompt_ids) :]
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _chat(self, messages: Messages, row: str) -> list[dict]:
        """Messages as the processor takes them: images loaded, names of special tokens split."""
        return [
            {
                "role": role,
                "content": [
                    {"type": "image", "image": load_image(cast(Any, value))}
                    if kind == "image"
                    else {"type": "text", "text": self._split_special(cast(str, value))}
                    for kind, value in parts
                ],
            }
            for role, parts in read_messages(messages, row=row).messages
        ]

    def _split_special(self, text: str) -> str:
        for name in self.special:
            text = text.replace(name, name[:1] + ZERO_WIDTH + name[1:])
        return text
