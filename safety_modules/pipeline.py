"""SafePipeline: messages in, answer, assessment and action out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from safety_modules.checkpoints.control_files import load_calibration, load_policy
from safety_modules.checkpoints.load import load
from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.decision_log import record
from safety_modules.decision.policy import Decision, Policy
from safety_modules.eta import Eta, EtaResult
from safety_modules.eta.evaluators.head import HeadRisk
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.safe_generator import Ask, SafeGenerator
from safety_modules.taxonomy import CLEAN

ASSESS = ("head_inputs", "pixel_values", "image_sizes")
QUESTION = "What is in this picture?"  # that an image alone is judged with
GENERATE = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "features")


@dataclass(frozen=True)
class SafeResult:
    """Answer to one exchange, what the head thought of it and what the policy did about it."""

    answer: str
    assessment: Assessment
    decision: Decision
    eta: EtaResult | None = None  # how the answer came about, where ETA had a part in it

    @property
    def action(self) -> str:
        """allow, hint, refuse or base."""
        return self.decision.action

    def to_dict(self) -> dict:
        """Plain values, for JSON: the answer, the action, the assessment, and what ETA did."""
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
        """Make a pipeline of parts.

        Args:
            policy: the default of the model's taxonomy where it is None.
            calibration: none where it is None.
            log: is given one record for each decision; see `log.record`, and `log.JsonLines` for a file.
            eta: evaluates and aligns the answers that the policy lets the model give. With `HeadRisk` as its pre-evaluator,
                the head decides which are worth that; its evaluators read the policy's hint as a system message.
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
    ) -> SafePipeline:
        """Load an exported or trained folder with its calibration.

        Args:
            policy: a policy file; None for the folder's own, `safety/policy.yaml`, or the default where it has none.
            merge: merge LoRA weights, where the folder holds them apart. Unmerged is slower, and the action "base" then gives
                the base's own answers to the token.
            eta: see `SafePipeline`.
        """
        model = load(folder, dtype=dtype, merge=merge).to(device)
        calibration = load_calibration(folder, model.taxonomy)
        return cls(model, load_policy(folder, model.taxonomy, calibration, policy), calibration, log, eta)

    def assess(self, exchanges: Sequence[Sequence[dict]]) -> list[Assessment]:
        """Probabilities for each exchange (see `SafeProcessor` for messages); no language-model forward."""
        return self._look(exchanges)[0]

    def _look(self, exchanges: Sequence[Sequence[dict]]) -> tuple[list[Assessment], list[dict[str, Tensor]]]:
        """The assessment of each exchange, and what the vision tower made of its images, so that it is run once."""
        rows = self._rows(exchanges, [""] * len(exchanges))
        batch = self._batch(rows)
        features = self.model.vision_features(batch.get("pixel_values"), batch.get("image_sizes"))  # (N, P, V)
        scores = self.model.assess(batch["head_inputs"], features=features)
        parts = features.split([int(row["tiles"].sum()) for row in rows])
        stored = [
            {"features": part, **{name: row[name] for name in ("tiles", "image_sizes") if name in row}}
            for row, part in zip(rows, parts)
        ]
        return self.calibration.assessments(*scores, self.model.taxonomy), stored

    def answer(
        self,
        exchanges: Sequence[Sequence[dict]],
        hints: Sequence[str],
        max_new_tokens: int = 256,
        base: bool = False,
        stored: Sequence[dict[str, Tensor]] | None = None,
    ) -> list[str]:
        """The model's greedy answers, with a hint (or "") for each exchange.

        Args:
            base: answer as the base does: no safety tokens, and no LoRA layers where they are not merged.
            stored: of each exchange what the tower made of its images, as `SafeProcessor.encode` takes it.
        """
        if not exchanges:
            return []
        batch = self._batch(self._rows(exchanges, hints, not base, stored))
        with self.model.without_adapters() if base else nullcontext():
            ids = self.model.generate(**_pick(batch, GENERATE), max_new_tokens=max_new_tokens)
        return self.model.processor.decode(ids)

    def decide(self, exchanges: Sequence[Sequence[dict]], language: str = "") -> list[tuple[Assessment, Decision]]:
        """Assess a batch of exchanges and ask the policy; every decision is logged."""
        return self._decide(self.assess(exchanges), language)

    def _decide(self, assessments: Sequence[Assessment], language: str) -> list[tuple[Assessment, Decision]]:
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
            max_new_tokens: bound on an answer's length.
            language: of hints and refusals, one of the policy's; "" for none in particular.
        """
        assessments, stored = self._look(exchanges)
        return self.finish(exchanges, self._decide(assessments, language), max_new_tokens, language, stored=stored)

    def finish(
        self,
        exchanges: Sequence[Sequence[dict]],
        judged: Sequence[tuple[Assessment, Decision]],
        max_new_tokens: int = 256,
        language: str = "",
        known: dict[int, str] | None = None,
        stored: Sequence[dict[str, Tensor]] | None = None,
    ) -> list[SafeResult]:
        """Answer exchanges that are decided already; arguments as in `__call__`.

        Args:
            known: number of an exchange -> its answer, where it need not be generated again.
            stored: see `answer`.
        """
        answers, batch_runs = dict(known or {}), {}
        if self.eta is not None:
            ask = [
                i for i, (_, decision) in enumerate(judged) if i not in answers and decision.action in ("allow", "hint")
            ]
            batch_runs = dict(zip(ask, self._align(exchanges, judged, ask, max_new_tokens, language, stored)))
            answers |= {i: batch_run.answer for i, batch_run in batch_runs.items()}
        for base in (False, True):
            ask = [
                i
                for i, (_, decision) in enumerate(judged)
                if i not in answers and decision.action != "refuse" and (decision.action == "base") == base
            ]
            hints = [judged[i][1].hint for i in ask]
            seen = [stored[i] for i in ask] if stored and not base else None  # adapters may be in the tower as well
            answers |= zip(ask, self.answer([exchanges[i] for i in ask], hints, max_new_tokens, base, seen))
        refusals = {i: self.policy.refuse(d, language) for i, (_, d) in enumerate(judged) if d.action == "refuse"}
        answers |= refusals
        return [SafeResult(answers[i], *pair, batch_runs.get(i)) for i, pair in enumerate(judged)]

    def stream(
        self,
        messages: Sequence[dict],
        max_new_tokens: int = 256,
        language: str = "",
        done: Callable[[SafeResult], None] | None = None,
    ) -> Iterator[str]:
        """Answer one exchange piece by piece; what is yielded, joined, is the answer. See `Eta.stream` for what ETA holds back.

        Args:
            done: is given the result at the end; the others are as in `__call__`.
        """
        assessments, stored = self._look([messages])
        ((assessment, decision),) = self._decide(assessments, language)
        said, etas = [], []
        for piece in self._pieces(messages, assessment, decision, max_new_tokens, language, stored[0], etas.append):
            said.append(piece)
            yield piece
        if done is not None:
            done(SafeResult("".join(said), assessment, decision, *etas))

    def _pieces(
        self,
        messages: Sequence[dict],
        assessment: Assessment,
        decision: Decision,
        max_new_tokens: int,
        language: str,
        stored: dict[str, Tensor],
        done: Callable[[EtaResult], None],
    ) -> Iterator[str]:
        """The answer to a decided exchange; an answer by the base alone comes whole."""
        ask = Ask(messages, decision.hint, stored)
        if decision.action == "refuse":
            yield self.policy.refuse(decision, language)
        elif decision.action == "base":
            yield from self.answer([messages], [""], max_new_tokens, base=True)
        elif self.eta is None:
            yield from self._generator.stream(ask, max_new_tokens)
        else:
            risk, refusal = self._known([assessment]), self._refusal(decision, language)
            told = _told(messages, decision)
            yield from self.eta.stream(self._generator, told, ask, risk and risk[0], max_new_tokens, refusal, done)

    def _align(
        self,
        exchanges: Sequence[Sequence[dict]],
        judged: Sequence[tuple[Assessment, Decision]],
        ask: list[int],
        max_new_tokens: int,
        language: str,
        stored: Sequence[dict[str, Tensor]] | None,
    ) -> list[EtaResult]:
        """What ETA makes of these exchanges; its evaluators are told the hint, its speaker is given it."""
        return self.eta(
            self._generator,
            [_told(exchanges[i], judged[i][1]) for i in ask],
            [Ask(exchanges[i], judged[i][1].hint, stored[i] if stored else None) for i in ask],
            self._known([judged[i][0] for i in ask]),
            max_new_tokens,
            lambda place: self._refusal(judged[ask[place]][1], language),
        )

    def _known(self, assessments: Sequence[Assessment]) -> list[float] | None:
        """Scores of ETA's pre-evaluator, where the head is it."""
        return [assessment.risk for assessment in assessments] if isinstance(self.eta.pre, HeadRisk) else None

    def _refusal(self, decision: Decision, language: str) -> str:
        """What ETA refuses with: the policy's text where it names a risk."""
        return self.eta.settings.refusal if decision.risk_type == CLEAN else self.policy.refuse(decision, language)

    def _rows(
        self,
        exchanges: Sequence[Sequence[dict]],
        hints: Sequence[str],
        tokens: bool = True,
        stored: Sequence[dict[str, Tensor]] | None = None,
    ) -> list[dict[str, Tensor]]:
        encode = self.model.processor.encode
        return [
            encode(messages, hint=hint, row=f"exchange {i}", tokens=tokens, stored=stored[i] if stored else None)
            for i, (messages, hint) in enumerate(zip(exchanges, hints))
        ]

    def _batch(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = self.model.processor.collate(rows, side="left")
        return {name: value.to(self.model.device) for name, value in batch.items()}


def ask(question: str, images: Sequence[object] = ()) -> list[dict]:
    """Messages of one user turn: images (paths or PIL images), then the question."""
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def _pick(batch: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: batch[name] for name in names if name in batch}


def _told(messages: Sequence[dict], decision: Decision) -> Sequence[dict]:
    """What ETA's evaluators read: the policy's hint goes first, as a system message."""
    return [{"role": "system", "content": decision.hint}, *messages] if decision.hint else messages
