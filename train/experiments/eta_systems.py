"""The systems that the ETA run compares, each a function from exchanges to answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from safety_modules.eta import AnswerGenerator, Eta, EtaResult, EtaSettings
from safety_modules.eta.baselines import Ecso, system_prompt
from safety_modules.eta.config_file import HintInstruction
from safety_modules.eta.eta_thresholds import EtaThresholds
from safety_modules.eta.evaluators.clip import Clip
from safety_modules.eta.evaluators.head import HeadRisk, HeadVerdict
from safety_modules.eta.evaluators.protocols import Messages, PostEvaluator, PreEvaluator
from safety_modules.eta.evaluators.reward import Reward
from safety_modules.pipeline import SafePipeline

MAX_NEW_TOKENS = 40
REWARD_THRESHOLD = 0.0  # a reward of equal chances: the model was trained with grades as probabilities
SETTINGS = EtaSettings(
    prefix="i",  # how this base begins some refusals; "As an AI assistant" does not occur in its world
    max_new_tokens=MAX_NEW_TOKENS,
    batch_size=32,
    on_unsafe="answer",  # so that answers with and without a refusal come from one search; see `refuse_unsafe`
)
SYSTEMS = {  # name -> what answers; where ETA's search ends unsafe it refuses, but for "no refusal"
    "base": "the base model, which is unsafe",
    "base + ETA": "the head before the answer, after it a reward model that reads the head's hint",
    "base + ETA, no refusal": "the same, which gives the search's answer in any case",
    "trained": "the whole method: head, policy, and a language model that was trained with hints",
    "trained + ETA": "both",
    "base + ETA, CLIP and reward": "the published pair of evaluators: no trained module",
    "base + ETA, head alone": "the head before the answer, after it the head's risk and the phrases of refusals",
    "base + safety sentence": "a system message that asks for safe answers",
    "base + ECSO": "the base judges its own answer; an unsafe one is replaced by an answer to a caption",
}


@dataclass(frozen=True)
class SystemRun:
    """Results of a system, of stage "plain" where ETA had no part, and the seconds of all of them."""

    results: list[EtaResult]
    seconds: float

    def refuse_unsafe(self, threshold: float) -> SystemRun:
        """The run of a system that refuses where its search ended unsafe."""
        results = [
            replace(result, answer=SETTINGS.refusal)
            if result.stage == "aligned" and result.final <= threshold
            else result
            for result in self.results
        ]
        return replace(self, results=results)


@dataclass(frozen=True)
class ComparedSystem:
    """A system, and ETA's evaluator of its answers where it has one."""

    answer: Callable[[Sequence[Messages]], list[EtaResult]]
    post: PostEvaluator | None = None

    def run(self, exchanges: Sequence[Messages]) -> SystemRun:
        """Answer exchanges."""
        start = time.perf_counter()
        return SystemRun(self.answer(exchanges), time.perf_counter() - start)


@dataclass
class EtaModels:
    """The models that the systems are made of.

    Attributes:
        head: trained on the base; assesses and decides, without a language model.
        trained: the whole method.
        clip, reward: small models of the published classes, trained on this world; the reward reads texts alone.
    """

    generator: AnswerGenerator
    head: SafePipeline
    trained: SafePipeline
    clip: Clip
    reward: Reward

    def __post_init__(self) -> None:
        reward = self.reward.model, self.reward.tokenizer
        self.hinted_reward = Reward(*reward, instruction=HintInstruction(""))
        self.blind_reward = Reward(*reward, instruction="")
        self.risk = HeadRisk(0.5, self.head.assess)
        self.verdict = HeadVerdict(0.5, self.head.assess)
        self.pairs: dict[str, tuple[PreEvaluator, PostEvaluator]] = {  # evaluators before and after the answer
            "head": (self.risk, self.hinted_reward),
            "clip": (self.clip, self.blind_reward),
            "verdict": (self.risk, self.verdict),
        }

    def plain(self, exchanges: Sequence[Messages], max_new_tokens: int = MAX_NEW_TOKENS) -> list[str]:
        """The base's own answers."""
        answers = (self.generator.greedy(batch, max_new_tokens).answers for batch in _batches(exchanges))
        return [answer for batch in answers for answer in batch]

    def assess(self, exchanges: Sequence[Messages]) -> tuple[list[float], list[Messages]]:
        """The head's risks, and the exchanges with the policy's hint as a system message, for evaluators."""
        decided = [pair for batch in _batches(exchanges) for pair in self.head.decide(batch)]
        hinted = [
            [{"role": "system", "content": decision.hint}, *exchange] if decision.hint else exchange
            for exchange, (_, decision) in zip(exchanges, decided)
        ]
        return [assessment.risk for assessment, _ in decided], hinted

    def fit(self, exchanges: Sequence[Messages], risky: Sequence[bool], budget: float) -> dict[str, EtaThresholds]:
        """Fit and set the thresholds of each pair of evaluators, on plain answers to labelled exchanges.

        The first of a pair keeps the budget alone, so both keep it, as both must flag. Rewards get REWARD_THRESHOLD:
        the one that keeps the budget lies in the tail of clean answers, too low to judge what a search finds.
        """
        answers, (risks, hinted) = self.plain(exchanges), self.assess(exchanges)
        fitted = {}
        for name, (pre, post) in self.pairs.items():
            scores = post(hinted if name == "head" else exchanges, answers)
            pre_scores = self.clip(exchanges) if name == "clip" else risks
            fitted[name] = EtaThresholds.fit(risky, pre_scores, scores, budget, pre.unit, post.unit)
        self.clip.threshold, self.risk.threshold = fitted["clip"].pre.threshold, fitted["head"].pre.threshold
        self.blind_reward.threshold = self.hinted_reward.threshold = REWARD_THRESHOLD
        self.verdict.threshold = fitted["verdict"].post.threshold
        return fitted

    def eta(self, pair: str = "head") -> Eta:
        """ETA with one of the pairs of evaluators."""
        pre, post = self.pairs[pair]
        return Eta(post, pre, self.clip if pair == "clip" else None, SETTINGS)

    def aligned(self, exchanges: Sequence[Messages], pair: str = "head") -> list[EtaResult]:
        """The base with ETA."""
        if pair == "clip":
            return self.eta(pair)(self.generator, exchanges)
        risks, hinted = self.assess(exchanges)
        return self.eta(pair)(self.generator, hinted if pair == "head" else exchanges, exchanges, risks)

    def systems(self) -> dict[str, ComparedSystem]:
        """All of SYSTEMS but "no refusal", which follows from "base + ETA"."""

        def without_eta(answer: Callable[[Sequence[Messages]], list[str]]) -> ComparedSystem:
            return ComparedSystem(lambda exchanges: [EtaResult(text, "plain") for text in answer(exchanges)])

        def base_with_eta(pair: str) -> ComparedSystem:
            return ComparedSystem(lambda exchanges: self.aligned(exchanges, pair), self.pairs[pair][1])

        def trained(exchanges: Sequence[Messages], eta: Eta | None = None) -> list[EtaResult]:
            self.trained.eta = eta
            results = [result for batch in _batches(exchanges) for result in self.trained(batch, MAX_NEW_TOKENS)]
            return [result.eta or EtaResult(result.answer, "plain") for result in results]

        def ecso(exchanges: Sequence[Messages]) -> list[str]:
            results, _ = Ecso(self.plain, caption_tokens=MAX_NEW_TOKENS)(exchanges, MAX_NEW_TOKENS)
            return [result.answer for result in results]

        return {
            "base": without_eta(self.plain),
            "base + ETA": base_with_eta("head"),
            "trained": ComparedSystem(trained),
            "trained + ETA": ComparedSystem(partial(trained, eta=self.eta()), self.hinted_reward),
            "base + ETA, CLIP and reward": base_with_eta("clip"),
            "base + ETA, head alone": base_with_eta("verdict"),
            "base + safety sentence": without_eta(lambda rows: system_prompt(self.plain, rows, MAX_NEW_TOKENS)),
            "base + ECSO": without_eta(ecso),
        }


def _batches(exchanges: Sequence[Messages]) -> Iterator[Sequence[Messages]]:
    return (exchanges[start : start + SETTINGS.batch_size] for start in range(0, len(exchanges), SETTINGS.batch_size))
