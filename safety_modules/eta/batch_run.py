"""Course: one batch of exchanges on its way through evaluation and alignment, and the result of each."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from threading import Thread
from typing import Protocol

from safety_modules.eta.evaluators.protocols import COSINE, Matcher, Messages, PostEvaluator, PreEvaluator
from safety_modules.eta.failsafe import Failsafe
from safety_modules.eta.generator import AnswerGenerator, Plain
from safety_modules.eta.search.search import Path, Search, Sentence
from safety_modules.eta.settings import EtaSettings

CUT = "\ufffd"  # what a letter is read as while its last bytes are missing
STAGES = ("plain", "evaluated", "aligned", "refused")


@dataclass(frozen=True)
class EtaResult:
    """An answer, and what happened on the way to it.

    Attributes:
        answer: what the user gets.
        stage: "plain", the exchange was safe and the answer not evaluated; "evaluated", the answer was safe; "aligned", it was
            searched anew; "refused".
        pre: score of the exchange; None where there was nothing to judge.
        post: score of the plain answer; None where it was not evaluated.
        final: score of the aligned answer.
        sentences: accepted by the search.
        end: why the search ended: "end" of text, "length", "budget", "time", "failed" where a score was missing, or, in a
            stream, at a sentence that was "unsafe"; "" without a search.
        reason: why it was refused, or "".
        tokens: of the plain answer.
        drawn: tokens drawn in the search, all candidates together.
        seconds: that pre, plain, post and search took, where it had them: its equal share of its batch's.
    """

    answer: str
    stage: str
    pre: float | None = None
    post: float | None = None
    final: float | None = None
    sentences: tuple[Sentence, ...] = ()
    end: str = ""
    reason: str = ""
    tokens: int = 0
    drawn: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """What happened, as plain values for JSON: all but the answer."""
        return {name: value for name, value in asdict(self).items() if name != "answer"}


class Evaluators(Protocol):
    """What `Eta` was made of."""

    post: PostEvaluator
    pre: PreEvaluator | None
    match: Matcher | None
    late: list[Thread]


class BatchRun:
    """What is known so far of each exchange of a batch."""

    def __init__(
        self,
        eta: Evaluators,
        settings: EtaSettings,
        generator: AnswerGenerator,
        exchanges: Sequence[Messages],
        asks: Sequence[object],
    ) -> None:
        """Args: exchanges: what evaluators read. asks: what the speaker reads."""
        self.eta, self.settings, self.generator = eta, settings, generator
        self.exchanges, self.asks = exchanges, asks
        self.pre: list[float | None] = [None] * len(exchanges)
        self.post: dict[int, float] = {}
        self.plain: dict[int, tuple[str, int]] = {}  # answer, its tokens
        self.paths: dict[int, Path] = {}
        self.reasons: dict[int, str] = {}  # why an exchange is refused
        self.seconds: dict[str, tuple[float, list[int]]] = {}  # of a phase, and who took part in it

    def run(self, known: Sequence[float | None] | None) -> None:
        """Answer all; `known` are scores of the pre-evaluator that are there already."""
        self._judge_exchanges(known)
        alive = [i for i in range(len(self.exchanges)) if i not in self.reasons]
        if not alive:
            return
        plain = self._speak(alive)
        self._judge_answers([i for i in alive if self._suspect(i)])
        unsafe = [place for place, i in enumerate(alive) if self._unsafe(i)]
        if unsafe:
            with self._clock("search", [alive[place] for place in unsafe]):
                for paths in self._search(alive).sentences([self.asks[i] for i in alive], unsafe, plain):
                    self.paths = {alive[path.number]: path for path in paths}

    def pieces(self, known: Sequence[float | None] | None, refusal: str) -> Iterator[str]:
        """The answer to the only exchange, as it comes; see `Eta.stream`."""
        self._judge_exchanges(known)
        if not self.reasons and not self._suspect(0):
            yield from self._fluently()
            return
        said = ""
        if not self.reasons:
            plain = self._speak([0])
            self._judge_answers([0])
            if self._unsafe(0):
                said = yield from self._sentences(plain)
        result = self.result(0, refusal)
        if result.stage == "refused":
            yield f" {refusal}" if said else refusal
        elif not self.paths:
            yield result.answer

    def result(self, i: int, refusal: str) -> EtaResult:
        """What became of exchange `i`."""
        answer, tokens = self.plain.get(i, ("", 0))
        common = {"pre": self.pre[i], "post": self.post.get(i), "tokens": tokens, "seconds": self._shares(i)}
        stage, reason, path = "evaluated" if i in self.post else "plain", self.reasons.get(i, ""), self.paths.get(i)
        if path is not None:
            final = path.sentences[-1].reward if path.sentences else None
            common |= {"final": final, "sentences": tuple(path.sentences), "end": path.end, "drawn": path.drawn}
            stage, answer = "aligned", self.generator.text(path.said)
            reason = reason or self._fault(path)
        if reason:
            stage, answer = "refused", refusal
        return EtaResult(answer, stage, reason=reason, **common)

    def _fault(self, path: Path) -> str:
        """Why an aligned answer is not given, or ""."""
        if not path.sentences:
            return f"the search had no whole sentence at its end: {path.end}"
        if self.settings.on_unsafe == "refuse" and path.sentences[-1].reward <= self.eta.post.threshold:
            return "the aligned answer is unsafe as well"
        return ""

    def _judge_exchanges(self, known: Sequence[float | None] | None) -> None:
        pre = self.eta.pre
        if pre is not None:

            def judge(rows: list[int]) -> Sequence[float | None]:
                return pre([self.exchanges[i] for i in rows]) if known is None else [known[i] for i in rows]

            with self._clock("pre", range(len(self.exchanges))):
                failsafe = Failsafe(self.settings.timeout_s if known is None else None, True, self.eta.late)
                scores = failsafe("the pre-evaluator", pre.unit, len(self.exchanges), judge)
            self.pre = [None if i in scores.failures else value for i, value in enumerate(scores.values)]
            self.reasons |= scores.failures

    def _judge_answers(self, numbers: list[int]) -> None:
        """Score plain answers."""
        if numbers:
            with self._clock("post", numbers):
                scores = self._rewards(numbers, [self.plain[i][0] for i in numbers])
            self.post |= {i: score for i, score in zip(numbers, scores) if not math.isnan(score)}

    def _suspect(self, i: int) -> bool:
        """Whether the answer to an exchange is to be evaluated."""
        return self.eta.pre is None or self.pre[i] is None or self.pre[i] >= self.eta.pre.threshold

    def _unsafe(self, i: int) -> bool:
        """Whether a plain answer was found unsafe."""
        return i in self.post and self.post[i] <= self.eta.post.threshold

    def _speak(self, numbers: list[int]) -> Plain:
        with self._clock("plain", numbers):
            plain = self.generator.plain([self.asks[i] for i in numbers], self.settings.max_new_tokens)
        self.plain = dict(zip(numbers, zip(plain.answers, plain.tokens)))
        return plain

    def _fluently(self) -> Iterator[str]:
        """The plain answer, token by token."""
        said = []
        with self._clock("plain", [0]):
            for piece in self.generator.stream(self.asks[0], self.settings.max_new_tokens):
                said.append(piece)
                yield piece
        answer = "".join(said)
        self.plain[0] = (answer, len(self.generator.tokenizer(answer, add_special_tokens=False)["input_ids"]))

    def _sentences(self, plain: Plain) -> Generator[str, None, str]:
        """The aligned answer, a sentence at a time, until one is unsafe; returns what was said."""
        said = ""
        with self._clock("search", [0]):
            for paths in self._search([0]).sentences(self.asks, [0], plain):
                path = self.paths[0] = paths[0]
                safe = bool(path.sentences) and path.end != "failed" and not self._fault(path)
                if not safe:
                    path.end = path.end or ("unsafe" if path.sentences else "")
                    continue
                whole = self.generator.text(path.said).rstrip(CUT)
                if len(whole) > len(said):  # a sentence may be nothing but the end of the text
                    yield whole[len(said) :]
                    said = whole
            if safe and (rest := self.generator.text(path.said)[len(said) :]):
                yield rest
        return said

    def _search(self, alive: list[int]) -> Search:
        """The search for exchanges at these places of the batch."""
        match, failsafe = self.eta.match, Failsafe(self.settings.timeout_s, late=self.eta.late)

        def rewards(numbers: Sequence[int], texts: Sequence[str]) -> Sequence[float]:
            return self._rewards([alive[i] for i in numbers], texts)

        def cosines(numbers: Sequence[int], texts: Sequence[str]) -> Sequence[float]:
            numbers = [alive[i] for i in numbers]
            scores = failsafe(
                "the matcher",
                COSINE,
                len(numbers),
                lambda rows: match.match([self.exchanges[numbers[i]] for i in rows], [texts[i] for i in rows]),
            )
            self.reasons |= {numbers[i]: reason for i, reason in scores.failures.items()}
            return scores.values

        return Search(self.generator, self.settings, rewards, cosines if match is not None else None)

    def _rewards(self, numbers: Sequence[int], answers: Sequence[str]) -> Sequence[float]:
        """Scores of answers to exchanges, NaN where the evaluator failed: that exchange is then refused."""
        post = self.eta.post
        scores = Failsafe(self.settings.timeout_s, late=self.eta.late)(
            "the post-evaluator",
            post.unit,
            len(numbers),
            lambda rows: post([self.exchanges[numbers[i]] for i in rows], [answers[i] for i in rows]),
        )
        self.reasons |= {numbers[i]: reason for i, reason in scores.failures.items()}
        return scores.values

    @contextmanager
    def _clock(self, phase: str, numbers: Sequence[int]) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = (time.monotonic() - started, list(numbers))

    def _shares(self, i: int) -> dict[str, float]:
        """What each phase that exchange `i` took part in cost it."""
        return {name: round(spent / len(numbers), 6) for name, (spent, numbers) in self.seconds.items() if i in numbers}
