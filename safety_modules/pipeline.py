"""SafePipeline: messages in, answer, assessment and action out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from safety_modules.checkpoints.control_files import load_calibration, load_policy
from safety_modules.checkpoints.format import read_taxonomy
from safety_modules.checkpoints.load import load, resolve_compute
from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.decision_log import record
from safety_modules.decision.policy import Decision, Policy
from safety_modules.eta import Eta, EtaResult
from safety_modules.eta.evaluators.head import HeadRisk
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.safe_generator import SafeGenerator, SafeRequest, collate
from safety_modules.taxonomy import CLEAN

ASSESS = ("head_inputs", "pixel_values", "image_sizes")
Judged = tuple[Assessment, Decision]
Messages = Sequence[dict]  # one exchange; see `SafeProcessor`
Features = dict[str, Tensor]  # of one exchange's images


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
        device: str = "auto",
        dtype: torch.dtype | str = "auto",
        log: Callable[[dict], None] | None = None,
        merge: bool = True,
        eta: Eta | None = None,
        language_model: bool = True,
    ) -> SafePipeline:
        """Load an exported or trained folder with its calibration.

        Args:
            policy: a policy file; None for the folder's own, `safety/policy.yaml`, or the default where it has none.
            device: "auto": the GPU where there is one, else the CPU.
            dtype: of the base's weights; "auto": as stored, but on a CPU bfloat16 in place of float16.
            merge: merge LoRA weights that are stored apart. Unmerged is slower, and the action "base" then gives the
                base's own answers, token for token.
            eta: see `SafePipeline`.
            language_model: False leaves it out of memory; such a pipeline assesses and decides, and cannot answer.

        Raises:
            ConfigError: an unknown dtype, or a device that this machine does not have.
        """
        taxonomy = read_taxonomy(folder)
        calibration = load_calibration(folder, taxonomy)
        checked_policy = load_policy(folder, taxonomy, calibration, policy)  # before a large model is loaded
        device, dtype = resolve_compute(folder, device, dtype)
        model = load(folder, dtype=dtype, merge=merge, language_model=language_model).to(device)
        return cls(model, checked_policy, calibration, log, eta)

    def assess(self, exchanges: Sequence[Messages]) -> list[Assessment]:
        """Probabilities for each exchange (see `SafeProcessor` for messages); no language-model forward."""
        return self.assess_with_features(exchanges)[0]

    def assess_with_features(self, exchanges: Sequence[Messages]) -> tuple[list[Assessment], list[Features]]:
        """As `assess`, and each exchange's image features, with which `finish` need not run the vision tower again."""
        rows = [self.model.processor.encode(row, row=f"exchange {i}") for i, row in enumerate(exchanges)]
        batch = collate(self.model, rows)
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
        exchanges: Sequence[Messages],
        hints: Sequence[str],
        max_new_tokens: int = 256,
        base: bool = False,
        features: Sequence[Features] | None = None,
    ) -> list[str]:
        """The model's greedy answers, with a hint (or "") for each exchange.

        Args:
            base: answer as the base does: no safety tokens, and no LoRA layers where they are not merged.
            features: of each exchange's images, from `assess_with_features`.
        """
        requests = [
            SafeRequest(messages, hint, features[i] if features else None, safety_tokens=not base)
            for i, (messages, hint) in enumerate(zip(exchanges, hints))
        ]
        return self._greedy(requests, max_new_tokens, base)

    def _greedy(self, requests: Sequence[SafeRequest], max_new_tokens: int, base: bool = False) -> list[str]:
        if not requests:
            return []
        with self.model.without_adapters() if base else nullcontext():
            return self._generator.greedy(requests, max_new_tokens).answers

    def decide(self, exchanges: Sequence[Messages], language: str = "") -> list[Judged]:
        """Assess a batch of exchanges and ask the policy; every decision is logged."""
        return self._decide(self.assess(exchanges), language)

    def _decide(self, assessments: Sequence[Assessment], language: str) -> list[Judged]:
        judged = [(assessment, self.policy.decide(assessment, language)) for assessment in assessments]
        if self.log is not None:
            for assessment, decision in judged:
                self.log(record(assessment, decision, self.policy))
        return judged

    def __call__(
        self, exchanges: Sequence[Messages], max_new_tokens: int = 256, language: str = ""
    ) -> list[SafeResult]:
        """Answer a batch of exchanges.

        Args:
            exchanges: each a list of messages; see `SafeProcessor`.
            max_new_tokens: bound on an answer's length.
            language: of hints and refusals, one of the policy's; "" for none in particular.
        """
        assessments, features = self.assess_with_features(exchanges)
        return self.finish(exchanges, self._decide(assessments, language), max_new_tokens, language, features=features)

    def finish(
        self,
        exchanges: Sequence[Messages],
        judged: Sequence[Judged],
        max_new_tokens: int = 256,
        language: str = "",
        known_answers: dict[int, str] | None = None,
        features: Sequence[Features] | None = None,
    ) -> list[SafeResult]:
        """Answer exchanges that are decided already; arguments as in `__call__`.

        Args:
            known_answers: number of an exchange -> its answer, where it need not be generated again.
            features: see `answer`.
        """
        answers, eta_results = dict(known_answers or {}), {}
        requests = [
            _request(messages, decision, features[i] if features else None)
            for i, (messages, (_, decision)) in enumerate(zip(exchanges, judged))
        ]

        def open_exchanges(*actions: str) -> list[int]:
            return [i for i, (_, decision) in enumerate(judged) if i not in answers and decision.action in actions]

        if self.eta is not None:
            numbers = open_exchanges("allow", "hint")
            batch = [requests[i] for i in numbers], [judged[i] for i in numbers]
            eta_results = dict(zip(numbers, self._align(self.eta, *batch, max_new_tokens, language)))
            answers |= {i: result.answer for i, result in eta_results.items()}
        for actions in (("allow", "hint"), ("base",)):
            numbers = open_exchanges(*actions)
            batch_requests = [requests[i] for i in numbers]
            answers |= zip(numbers, self._greedy(batch_requests, max_new_tokens, base=actions == ("base",)))
        answers |= {i: self.policy.refusal(judged[i][1], language) for i in open_exchanges("refuse")}
        return [SafeResult(answers[i], *pair, eta_results.get(i)) for i, pair in enumerate(judged)]

    def stream(
        self,
        messages: Messages,
        max_new_tokens: int = 256,
        language: str = "",
        done: Callable[[SafeResult], None] | None = None,
    ) -> Iterator[str]:
        """Answer one exchange piece by piece; what is yielded, joined, is the answer.

        The base's own answer, and a refusal, is one piece. `Eta.stream` describes ETA's pieces.

        Args:
            done: called at the end with the result; the others are as in `__call__`.
        """
        assessments, features = self.assess_with_features([messages])
        ((assessment, decision),) = self._decide(assessments, language)
        request = _request(messages, decision, features[0])
        pieces: list[str] = []
        eta_results: list[EtaResult] = []
        if decision.action == "refuse":
            stream: Iterator[str] = iter([self.policy.refusal(decision, language)])
        elif decision.action == "base":
            stream = iter(self._greedy([request], max_new_tokens, base=True))
        elif self.eta is None:
            stream = self._generator.stream(request, max_new_tokens)
        else:
            risk = assessment.risk if isinstance(self.eta.pre, HeadRisk) else None
            refusal, exchange = self._eta_refusal(self.eta, decision, language), _with_hint(request)
            end = eta_results.append
            stream = self.eta.stream(self._generator, exchange, request, risk, max_new_tokens, refusal, end)
        for piece in stream:
            pieces.append(piece)
            yield piece
        if done is not None:
            done(SafeResult("".join(pieces), assessment, decision, *eta_results))

    def _align(
        self, eta: Eta, requests: list[SafeRequest], judged: list[Judged], max_new_tokens: int, language: str
    ) -> list[EtaResult]:
        """ETA's results; evaluators and generator read the policy's hint."""
        risks = [assessment.risk for assessment, _ in judged] if isinstance(eta.pre, HeadRisk) else None

        def refuse(row: int) -> str:
            return self._eta_refusal(eta, judged[row][1], language)

        return eta(self._generator, list(map(_with_hint, requests)), requests, risks, max_new_tokens, refuse)

    def _eta_refusal(self, eta: Eta, decision: Decision, language: str) -> str:
        """ETA's refusal: the policy's text where the decision names a risk."""
        return eta.settings.refusal if decision.risk_type == CLEAN else self.policy.refusal(decision, language)


def _request(messages: Messages, decision: Decision, features: Features | None) -> SafeRequest:
    """What the generator reads; the base answers without adapters, which may be in the vision tower as well."""
    base = decision.action == "base"
    return SafeRequest(messages, decision.hint, None if base else features, safety_tokens=not base)


def _with_hint(request: SafeRequest) -> Messages:
    """What ETA's evaluators read: the policy's hint first, as a system message."""
    return [{"role": "system", "content": request.hint}, *request.messages] if request.hint else request.messages
