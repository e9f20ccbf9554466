"""SafePipeline: messages in, answer, assessment and action out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safety_modules.checkpoints.control_files import load_calibration, load_policy
from safety_modules.checkpoints.format import read_taxonomy
from safety_modules.checkpoints.load import load
from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.decision_log import record
from safety_modules.decision.policy import Decision, Policy
from safety_modules.eta import Eta, EtaResult
from safety_modules.eta.evaluators.head import HeadRisk
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.safe_generator import SafeGenerator, SafeRequest
from safety_modules.taxonomy import CLEAN

ASSESS = ("head_inputs", "pixel_values", "image_sizes")
Judged = tuple[Assessment, Decision]
GENERATE = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "features")


@dataclass(frozen=True)
class SafeResult:
    """Answer to one exchange, its assessment by the head and the policy's decision."""

    answer: str
    assessment: Assessment
    decision: Decision
    eta: EtaResult | None = None  # how the answer came about, where ETA evaluated it

    @property
    def action(self) -> str:
        """allow, hint, refuse or base."""
        return self.decision.action

    def to_dict(self) -> dict:
        """Plain values, for JSON: the answer, the action, the assessment, and ETA's result."""
        eta = {} if self.eta is None else {"eta": self.eta.to_dict()}
        return {"answer": self.answer, "action": self.action, **self.assessment.to_dict(), **eta}


class SafePipeline:
    """Assess, decide, answer.

    Source: PSA-VLM section 3.4: a first pass of vision tower, safety projector and head chooses a hint, a second pass
    answers with it. Differs: the hint is a system sentence, and a policy decides whether there is one.

    `policy` and `log` may be changed at any time, for the next call on.
    """

    def __init__(
        self,
        model: SafeVLM,
        policy: Policy | None = None,
        calibration: Calibration | None = None,
        log: Callable[[dict], None] | None = None,
        eta: Eta | None = None,
    ) -> None:
        """Combine the parts of a pipeline.

        Args:
            policy: the default of the model's taxonomy where it is None.
            calibration: none where it is None.
            log: called with one record for each decision; see `decision_log.record`, and `JsonLines` for a file.
            eta: evaluates and aligns the answers that the policy lets the model give. With `HeadRisk` as its
                pre-evaluator the head decides which; its evaluators read the policy's hint as a system message.
        """
        self.model = model.eval()
        self.policy = policy or Policy.default(model.taxonomy)
        self.calibration = calibration or Calibration()
        self.log, self.eta = log, eta
        self._generator = SafeGenerator(self.model)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        policy: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype | str = "auto",
        log: Callable[[dict], None] | None = None,
        merge: bool = True,
        eta: Eta | None = None,
        language_model: bool = True,
    ) -> SafePipeline:
        """Load an exported or trained folder with its calibration.

        Args:
            policy: a policy file; None for the folder's own, `safety/policy.yaml`, or the default where it has none.
            merge: merge LoRA weights that are stored apart. Unmerged is slower, and the action "base" then gives the
                base's own answers, token for token.
            eta: see `SafePipeline`.
            language_model: False leaves it out of memory; such a pipeline assesses and decides, and cannot answer.
        """
        taxonomy = read_taxonomy(folder)
        calibration = load_calibration(folder, taxonomy)
        checked_policy = load_policy(folder, taxonomy, calibration, policy)  # before a large model is loaded
        model = load(folder, dtype=dtype, merge=merge, language_model=language_model).to(device)
        return cls(model, checked_policy, calibration, log, eta)

    def assess(self, exchanges: Sequence[Sequence[dict]]) -> list[Assessment]:
        """Probabilities for each exchange (see `SafeProcessor` for messages); no language-model forward."""
        return self.assess_with_features(exchanges)[0]

    def assess_with_features(
        self, exchanges: Sequence[Sequence[dict]]
    ) -> tuple[list[Assessment], list[dict[str, Tensor]]]:
        """As `assess`, and each exchange's image features, with which `finish` need not run the vision tower again."""
        rows = self._encode(exchanges, [""] * len(exchanges))
        batch = self._collate(rows)
        features = self.model.vision_features(batch.get("pixel_values"), batch.get("image_sizes"))  # (N, P, V)
        scores = self.model.assess(batch["head_inputs"], features=features)
        parts = features.split([int(row["tiles"].sum()) for row in rows])
        of_exchange = [
            {"features": part, **{name: row[name] for name in ("tiles", "image_sizes") if name in row}}
            for row, part in zip(rows, parts)
        ]
        return self.calibration.assessments(*scores, self.model.taxonomy), of_exchange

    def answer(
        self,
        exchanges: Sequence[Sequence[dict]],
        hints: Sequence[str],
        max_new_tokens: int = 256,
        base: bool = False,
        features: Sequence[dict[str, Tensor]] | None = None,
    ) -> list[str]:
        """The model's greedy answers, with a hint (or "") for each exchange.

        Args:
            base: answer as the base does: no safety tokens, and no LoRA layers where they are not merged.
            features: of each exchange's images, from `assess_with_features`.
        """
        if not exchanges:
            return []
        batch = self._collate(self._encode(exchanges, hints, not base, features))
        inputs = {name: batch[name] for name in GENERATE if name in batch}
        with self.model.without_adapters() if base else nullcontext():
            ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens)
        return self.model.processor.decode(ids)

    def decide(self, exchanges: Sequence[Sequence[dict]], language: str = "") -> list[Judged]:
        """Assess a batch of exchanges and ask the policy; every decision is logged."""
        return self._decide(self.assess(exchanges), language)

    def _decide(self, assessments: Sequence[Assessment], language: str) -> list[Judged]:
        judged = [(assessment, self.policy.decide(assessment, language)) for assessment in assessments]
        if self.log is not None:
            for assessment, decision in judged:
                self.log(record(assessment, decision, self.policy))
        return judged

    def __call__(
        self, exchanges: Sequence[Sequence[dict]], max_new_tokens: int = 256, language: str = ""
    ) -> list[SafeResult]:
        """Answer a batch of exchanges.

        Args:
            exchanges: each a list of messages; see `SafeProcessor`.
            max_new_tokens: bound on an answer's length. language: of hints and refusals; "" for none in particular.
        """
        assessments, features = self.assess_with_features(exchanges)
        return self.finish(exchanges, self._decide(assessments, language), max_new_tokens, language, features=features)

    def finish(
        self,
        exchanges: Sequence[Sequence[dict]],
        judged: Sequence[Judged],
        max_new_tokens: int = 256,
        language: str = "",
        known_answers: dict[int, str] | None = None,
        features: Sequence[dict[str, Tensor]] | None = None,
    ) -> list[SafeResult]:
        """Answer exchanges that are decided already; arguments as in `__call__`.

        Args:
            known_answers: number of an exchange -> its answer, where it need not be generated again.
            features: see `answer`.
        """
        answers, eta_results = dict(known_answers or {}), {}

        def open_exchanges(*actions: str) -> list[int]:
            return [i for i, (_, decision) in enumerate(judged) if i not in answers and decision.action in actions]

        if self.eta is not None:
            numbers = open_exchanges("allow", "hint")
            aligned = self._align(self.eta, exchanges, judged, numbers, max_new_tokens, language, features)
            eta_results = dict(zip(numbers, aligned))
            answers |= {i: result.answer for i, result in eta_results.items()}
        for actions in (("allow", "hint"), ("base",)):
            numbers, base = open_exchanges(*actions), actions == ("base",)
            hints = [judged[i][1].hint for i in numbers]
            # the base answers without adapters, which may be in the vision tower as well
            own_features = [features[i] for i in numbers] if features and not base else None
            chosen = [exchanges[i] for i in numbers]
            answers |= zip(numbers, self.answer(chosen, hints, max_new_tokens, base, own_features))
        answers |= {i: self.policy.refusal(judged[i][1], language) for i in open_exchanges("refuse")}
        return [SafeResult(answers[i], *pair, eta_results.get(i)) for i, pair in enumerate(judged)]

    def stream(
        self,
        messages: Sequence[dict],
        max_new_tokens: int = 256,
        language: str = "",
        done: Callable[[SafeResult], None] | None = None,
    ) -> Iterator[str]:
        """Answer one exchange piece by piece; what is yielded, joined, is the answer. See `Eta.stream` for ETA's
        pieces.

        Args:
            done: called at the end with the result; the others are as in `__call__`.
        """
        assessments, features = self.assess_with_features([messages])
        ((assessment, decision),) = self._decide(assessments, language)
        request = SafeRequest(messages, decision.hint, features[0])
        pieces: list[str] = []
        eta_results: list[EtaResult] = []
        for piece in self._pieces(request, assessment, decision, max_new_tokens, language, eta_results.append):
            pieces.append(piece)
            yield piece
        if done is not None:
            done(SafeResult("".join(pieces), assessment, decision, *eta_results))

    def _pieces(
        self,
        request: SafeRequest,
        assessment: Assessment,
        decision: Decision,
        max_new_tokens: int,
        language: str,
        done: Callable[[EtaResult], None],
    ) -> Iterator[str]:
        """The answer to a decided exchange; an answer by the base alone comes whole."""
        if decision.action == "refuse":
            yield self.policy.refusal(decision, language)
        elif decision.action == "base":
            yield from self.answer([request.messages], [""], max_new_tokens, base=True)
        elif self.eta is None:
            yield from self._generator.stream(request, max_new_tokens)
        else:
            risk = assessment.risk if isinstance(self.eta.pre, HeadRisk) else None
            refusal, exchange = self._eta_refusal(self.eta, decision, language), _with_hint(request.messages, decision)
            yield from self.eta.stream(self._generator, exchange, request, risk, max_new_tokens, refusal, done)

    def _align(
        self,
        eta: Eta,
        exchanges: Sequence[Sequence[dict]],
        judged: Sequence[Judged],
        numbers: list[int],
        max_new_tokens: int,
        language: str,
        features: Sequence[dict[str, Tensor]] | None,
    ) -> list[EtaResult]:
        """ETA's results for these exchanges; evaluators and generator read the policy's hint."""
        return eta(
            self._generator,
            [_with_hint(exchanges[i], judged[i][1]) for i in numbers],
            [SafeRequest(exchanges[i], judged[i][1].hint, features[i] if features else None) for i in numbers],
            [judged[i][0].risk for i in numbers] if isinstance(eta.pre, HeadRisk) else None,
            max_new_tokens,
            lambda row: self._eta_refusal(eta, judged[numbers[row]][1], language),
        )

    def _eta_refusal(self, eta: Eta, decision: Decision, language: str) -> str:
        """ETA's refusal: the policy's text where the decision names a risk."""
        return eta.settings.refusal if decision.risk_type == CLEAN else self.policy.refusal(decision, language)

    def _encode(
        self,
        exchanges: Sequence[Sequence[dict]],
        hints: Sequence[str],
        safety_tokens: bool = True,
        features: Sequence[dict[str, Tensor]] | None = None,
    ) -> list[dict[str, Tensor]]:
        encode = partial(self.model.processor.encode, safety_tokens=safety_tokens)
        return [
            encode(messages, hint=hint, row=f"exchange {i}", image_features=features[i] if features else None)
            for i, (messages, hint) in enumerate(zip(exchanges, hints))
        ]

    def _collate(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        batch = self.model.processor.collate(rows, side="left")
        return {name: value.to(self.model.device) for name, value in batch.items()}


def _with_hint(messages: Sequence[dict], decision: Decision) -> Sequence[dict]:
    """What ETA's evaluators read: the policy's hint first, as a system message."""
    return [{"role": "system", "content": decision.hint}, *messages] if decision.hint else messages
