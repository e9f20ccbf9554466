"""SafePipeline: messages in, answer, assessment and action out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from safety_modules.assessment import Assessment
from safety_modules.calibration import Calibration
from safety_modules.modeling import SafeVLM
from safety_modules.policy import Decision, Policy

ASSESS = ("input_ids", "attention_mask", "question_mask", "images_per_row", "pixel_values", "image_sizes")
GENERATE = ("input_ids", "attention_mask", "pixel_values", "image_sizes")


@dataclass(frozen=True)
class SafeResult:
    """Answer to one exchange, what the head thought of it and what the policy did about it."""

    answer: str
    assessment: Assessment
    decision: Decision

    @property
    def action(self) -> str:
        """allow, hint or refuse."""
        return self.decision.action


class SafePipeline:
    """Assess, decide, answer.

    Source: PSA-VLM section 3.4: a first pass of vision tower, safety projector and head chooses a hint, a second pass
    answers with it. Differs: the hint is a system sentence, and a policy decides whether there is one.
    """

    def __init__(self, model: SafeVLM, policy: Policy | None = None, calibration: Calibration | None = None) -> None:
        """Args: policy: the default of the model's taxonomy where it is None. calibration: none where it is None."""
        self.model = model.eval()
        self.policy = policy or Policy.default(model.taxonomy)
        self.calibration = calibration or Calibration()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, policy: str | Path | None = None, device: str = "cpu", dtype: torch.dtype | str = "auto"
    ) -> SafePipeline:
        """Load an exported or trained folder.

        Args:
            policy: a policy file, or None for the default policy.
        """
        model = SafeVLM.from_pretrained(folder, dtype=dtype).to(device)
        return cls(model, Policy.from_yaml(policy, model.taxonomy) if policy else None)

    def assess(self, exchanges: Sequence[Sequence[dict]]) -> list[Assessment]:
        """Probabilities for each exchange (see `SafeProcessor` for messages); no language-model forward."""
        batch = self._batch(exchanges, [""] * len(exchanges))
        scores = self.model.assess(**_pick(batch, ASSESS))
        return self.calibration.assessments(*scores, self.model.taxonomy)

    def answer(self, exchanges: Sequence[Sequence[dict]], hints: Sequence[str], max_new_tokens: int = 256) -> list[str]:
        """The model's greedy answers, with a hint (or "") for each exchange."""
        if not exchanges:
            return []
        batch = self._batch(exchanges, hints)
        return self.model.processor.decode(self.model.generate(**_pick(batch, GENERATE), max_new_tokens=max_new_tokens))

    def __call__(self, exchanges: Sequence[Sequence[dict]], max_new_tokens: int = 256) -> list[SafeResult]:
        """Answer a batch of exchanges.

        Args:
            exchanges: each a list of messages; see `SafeProcessor`.
            max_new_tokens: bound on an answer's length.
        """
        assessments = self.assess(exchanges)
        decisions = [self.policy.decide(assessment) for assessment in assessments]
        ask = [i for i, decision in enumerate(decisions) if decision.action != "refuse"]
        texts = self.answer([exchanges[i] for i in ask], [decisions[i].hint for i in ask], max_new_tokens)
        answers = dict(zip(ask, texts))
        return [
            SafeResult(answers[i] if i in answers else self.policy.refuse(decisions[i]), assessments[i], decisions[i])
            for i in range(len(exchanges))
        ]

    def _batch(self, exchanges: Sequence[Sequence[dict]], hints: Sequence[str]) -> dict[str, Tensor]:
        processor = self.model.processor
        rows = [
            processor.encode(messages, hint=hint, row=f"exchange {i}") for i, (messages, hint) in enumerate(zip(exchanges, hints))
        ]
        return {name: value.to(self.model.device) for name, value in processor.collate(rows, side="left").items()}


def ask(question: str, images: Sequence[object] = ()) -> list[dict]:
    """Messages of one user turn: pictures (paths or PIL images), then the question."""
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def _pick(batch: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: batch[name] for name in names if name in batch}
