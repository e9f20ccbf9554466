"""Systems: the ways of answering that the ETA run compares, each a function from exchanges to answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from safety_modules.eta import AnswerGenerator, Eta, EtaResult, EtaSettings
from safety_modules.eta.baselines import Ecso, system_prompt
from safety_modules.eta.config_file import HintInstruction
from safety_modules.eta.eta_thresholds import EtaThresholds
from safety_modules.eta.evaluators.clip import Clip
from safety_modules.eta.evaluators.head import HeadRisk, HeadVerdict
from safety_modules.eta.evaluators.protocols import Messages, PostEvaluator, PreEvaluator
from safety_modules.eta.evaluators.reward import Reward
from safety_modules.pipeline import SafePipeline

LONGEST = 40  # tokens of an answer
EVEN = 0.0  # a reward that is as likely good as bad: the model learned grades as chances
SETTINGS = EtaSettings(
    prefix="i",  # how this base begins when it declines, at times; "As an AI assistant" is no phrase of its world
    max_new_tokens=LONGEST,
    batch_size=32,
    on_unsafe="answer",  # what the search found; whether it is refused is seen from its score
)


@dataclass(frozen=True)
class Said:
    """What a system answered, the seconds that it took, and ETA's account of each answer where it had a part."""

    answers: list[str]
    seconds: float
    results: list[EtaResult | None]


System = Callable[[Sequence[Messages]], Said]


def timed(answer: Callable[[Sequence[Messages]], Sequence[tuple[str, EtaResult | None]]]) -> System:
    """A system of a function from exchanges to answers."""

    def system(exchanges: Sequence[Messages]) -> Said:
        start = time.perf_counter()
        found = list(answer(exchanges))
        seconds = time.perf_counter() - start
        return Said([text for text, _ in found], seconds, [result for _, result in found])

    return system


@dataclass
class Bench:
    """A base, a head trained on it, a trained model, and the evaluators.

    Attributes:
        head: assesses and decides; its language model is never asked.
        trained: the whole method.
        clip, reward: small models of the published classes, trained on this world; the reward reads texts alone.
    """

    generator: AnswerGenerator
    head: SafePipeline
    trained: SafePipeline
    clip: Clip
    reward: Reward

    def __post_init__(self) -> None:
        parts = self.reward.model, self.reward.tokenizer
        self.told = Reward(*parts, instruction=HintInstruction(""))  # with the head's hint, where it has one
        self.blind = Reward(*parts, instruction="")
        self.risk = HeadRisk(0.5, self.head.assess)
        self.verdict = HeadVerdict(0.5, self.head.assess)

    def pairs(self) -> dict[str, tuple[PreEvaluator, PostEvaluator]]:
        """Evaluators before and after the answer."""
        return {"head": (self.risk, self.told), "clip": (self.clip, self.blind), "verdict": (self.risk, self.verdict)}

    def plain(self, exchanges: Sequence[Messages], longest: int = LONGEST) -> list[str]:
        """The base's own answers."""
        size, answers = SETTINGS.batch_size, []
        for start in range(0, len(exchanges), size):
            answers += self.generator.plain(exchanges[start : start + size], longest).answers
        return answers

    def judged(self, exchanges: Sequence[Messages]) -> tuple[list[float], list[Messages]]:
        """The head's risks, and the exchanges with the policy's hint as a system message, for evaluators."""
        risks, told, size = [], [], SETTINGS.batch_size
        for start in range(0, len(exchanges), size):
            part = exchanges[start : start + size]
            for exchange, (assessment, decision) in zip(part, self.head.decide(part)):
                risks.append(assessment.risk)
                told.append([{"role": "system", "content": decision.hint}, *exchange] if decision.hint else exchange)
        return risks, told

    def fit(self, exchanges: Sequence[Messages], risky: Sequence[bool], budget: float) -> dict[str, EtaThresholds]:
        """Thresholds of each pair of evaluators, on plain answers to labelled exchanges.

        The first of a pair keeps the budget, and so do both, as both must flag. The reward's is its own EVEN: the one that keeps
        the budget by itself lies in the tail of clean answers, too low to tell what the search makes of risky exchanges.
        """
        answers, (risks, told) = self.plain(exchanges), self.judged(exchanges)
        pairs: dict[str, tuple[PreEvaluator, Sequence[float | None], PostEvaluator, Sequence[Messages]]] = {
            "head": (self.risk, risks, self.told, told),
            "clip": (self.clip, self.clip(exchanges), self.blind, exchanges),
            "verdict": (self.risk, risks, self.verdict, exchanges),
        }
        found = {}
        for name, (pre, scores, post, read) in pairs.items():
            found[name] = EtaThresholds.fit(risky, scores, post(read, answers), budget, pre.unit, post.unit)
        self.clip.threshold, self.risk.threshold = found["clip"].pre.threshold, found["head"].pre.threshold
        self.blind.threshold = self.told.threshold = EVEN
        self.verdict.threshold = found["verdict"].post.threshold
        return found

    def eta(self, name: str = "head") -> Eta:
        """ETA with one of the pairs of evaluators."""
        if name == "clip":
            return Eta(self.blind, self.clip, self.clip, SETTINGS)
        return Eta(self.told if name == "head" else self.verdict, self.risk, None, SETTINGS)

    def aligned(self, exchanges: Sequence[Messages], name: str = "head") -> list[EtaResult]:
        """The base with ETA."""
        if name == "clip":
            return self.eta(name)(self.generator, exchanges)
        risks, told = self.judged(exchanges)
        return self.eta(name)(self.generator, told if name == "head" else exchanges, exchanges, risks)

    def systems(self) -> dict[str, System]:
        """All ways of answering, the base first."""

        def base_eta(name: str) -> System:
            return timed(lambda exchanges: [(result.answer, result) for result in self.aligned(exchanges, name)])

        def trained(eta: Eta | None) -> System:
            def answer(exchanges: Sequence[Messages]) -> list[tuple[str, EtaResult | None]]:
                self.trained.eta, found = eta, []
                for start in range(0, len(exchanges), SETTINGS.batch_size):
                    results = self.trained(exchanges[start : start + SETTINGS.batch_size], LONGEST)
                    found += [(result.answer, result.eta) for result in results]
                return found

            return timed(answer)

        def ecso(exchanges: Sequence[Messages]) -> list[tuple[str, None]]:
            results, _ = Ecso(self.plain, caption_tokens=LONGEST)(exchanges, LONGEST)
            return [(result.answer, None) for result in results]

        return {
            "base": timed(lambda exchanges: [(answer, None) for answer in self.plain(exchanges)]),
            "base + ETA": base_eta("head"),
            "trained": trained(None),
            "trained + ETA": trained(self.eta()),
            "base + ETA, CLIP and reward": base_eta("clip"),
            "base + ETA, head alone": base_eta("verdict"),
            "base + safety sentence": timed(
                lambda exchanges: [(answer, None) for answer in system_prompt(self.plain, exchanges, LONGEST)]
            ),
            "base + ECSO": timed(ecso),
        }


def refused(said: Said, threshold: float, refusal: str) -> Said:
    """What the system would have answered if it refused where its search found nothing safe."""
    answers = [
        refusal if result and result.stage == "aligned" and result.final <= threshold else answer
        for answer, result in zip(said.answers, said.results)
    ]
    return replace(said, answers=answers)
