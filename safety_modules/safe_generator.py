"""SafeSpeaker: a SafeVLM as ETA's speaker: hints, safety tokens, and images that the vision tower has seen already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from safety_modules.eta.generator import AnswerGenerator
from safety_modules.model.safe_vlm import SafeVLM


@dataclass(frozen=True)
class Ask:
    """What a SafeVLM is asked.

    Attributes:
        messages: see `SafeProcessor`.
        hint: for the system part, or "".
        stored: what the tower made of the images, as `SafeProcessor.encode` takes it; None: it is run.
    """

    messages: Sequence[dict]
    hint: str = ""
    stored: dict[str, Tensor] | None = None


class SafeGenerator(AnswerGenerator):
    """Answers `Ask`s with a SafeVLM; its own processor keeps users' texts plain."""

    def __init__(self, model: SafeVLM) -> None:
        """Args: model: with or without trained modules."""
        self.safe, self.model, self.tokenizer = model.eval(), model.base, model.processor.tokenizer
        self.shares = None

    @property
    def suppress(self) -> list[int]:
        """Ids that no answer may contain; asked for when there is one to give, as a model may be there for its head alone."""
        return self.safe.placeholders()

    def inputs(self, asks: Sequence[Ask]) -> dict[str, Tensor]:
        """As `AnswerGenerator.inputs`; with stored features, `inputs_embeds` (B, T, D) in place of images."""
        processor = self.safe.processor
        rows = [
            processor.encode(ask.messages, hint=ask.hint, row=f"exchange {i}", stored=ask.stored)
            for i, ask in enumerate(asks)
        ]
        batch = {name: value.to(self.model.device) for name, value in processor.collate(rows, side="left").items()}
        wanted = ("pixel_values", "image_sizes", "features")
        read = self.safe.prepare_generate_inputs(
            batch["input_ids"], **{name: batch[name] for name in wanted if name in batch}
        )
        return {**read, "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def prefix(self, text: str) -> list[int]:
        """Ids of the beginning of an answer."""
        return self.safe.processor.begin(text) if text else []
