"""SafeGenerator: a SafeVLM as ETA's generator: hints, safety tokens, and images whose features are computed already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from safety_modules.eta.generator import AnswerGenerator
from safety_modules.model.safe_vlm import SafeVLM


@dataclass(frozen=True)
class SafeRequest:
    """A request to a SafeVLM.

    Attributes:
        messages: see `SafeProcessor`.
        hint: for the system part, or "".
        features: of the images, as `SafeProcessor.encode` takes them; None: the vision tower runs.
        safety_tokens: False gives the base's own prompt.
    """

    messages: Sequence[dict]
    hint: str = ""
    features: dict[str, Tensor] | None = None
    safety_tokens: bool = True


class SafeGenerator(AnswerGenerator):
    """Answers `SafeRequest`s with a SafeVLM; its own processor keeps users' texts plain."""

    def __init__(self, model: SafeVLM) -> None:
        """Args: model: with or without trained modules."""
        super().__init__(model.base, model.processor.tokenizer)
        self.safe_vlm = model.eval()

    @property
    def suppress(self) -> list[int]:
        """The placeholders; asked for at each answer, as a model may be loaded for its head alone."""
        return self.safe_vlm.placeholders()

    def inputs(self, requests: Sequence[SafeRequest]) -> dict[str, Tensor]:
        """What the model reads; with stored features, `inputs_embeds` (B, T, D) in place of images."""
        encode = self.safe_vlm.processor.encode
        rows = [
            encode(
                r.messages, hint=r.hint, row=f"exchange {i}", safety_tokens=r.safety_tokens, image_features=r.features
            )
            for i, r in enumerate(requests)
        ]
        batch = collate(self.safe_vlm, rows)
        images = {name: batch[name] for name in ("pixel_values", "image_sizes", "features") if name in batch}
        inputs = self.safe_vlm.prepare_generate_inputs(batch["input_ids"], **images)
        return {**inputs, "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def prefix(self, text: str) -> list[int]:
        """Ids of the beginning of an answer."""
        return self.safe_vlm.processor.encode_prefix(text) if text else []


def collate(model: SafeVLM, rows: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """Encoded rows as one batch on the model's device, padded on the left."""
    batch = model.processor.collate(rows, side="left")
    return {name: value.to(model.device) for name, value in batch.items()}
