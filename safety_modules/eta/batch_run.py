"""BatchRun: the state of one batch of exchanges in evaluation and alignment, and the result of each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from threading import Thread
from typing import Any, Protocol, cast

from safety_modules.eta.evaluators.protocols import COSINE, Matcher, Messages, PostEvaluator, PreEvaluator, Unit
from safety_modules.eta.failsafe import Failsafe
from safety_modules.eta.generator import AnswerGenerator, GreedyAnswers
from safety_modules.eta.search.search import Search, SearchState, Sentence
from safety_modules.eta.settings import EtaSettings

TextScore = Callable[[Sequence[Messages], Sequence[str]], Sequence[float]]  # of an answer or a sentence


@dataclass(frozen=True)
class EtaResult:
    """An answer, and how it came about.

    Attributes:
        answer: what the user gets.
        stage: "plain", the exchange was safe and the answer not evaluated; "evaluated", the answer was safe; "aligned",
            the answer is the search's; "refused".
        pre: score of the exchange; None where there was nothing to score.
        post: score of the plain answer; None where it was not evaluated.
        final: score of the aligned answer.
        sentences: accepted by the search.
        end: why the search ended: "end" of text, "length", "budget", "time", "failed" where a score was missing, or,
            in a stream, at a sentence that was "unsafe"; "" without a search.
        reason: why the exchange was refused, or "".
        tokens: of the plain answer.
        sampled: tokens sampled in the search, all candidates together.
        seconds: of the phases "pre", "plain", "post" and "search" that it was in: an equal part of its batch's time.
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
    sampled: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain values, for JSON: everything but the answer."""
        return {name: value for name, value in asdict(self).items() if name != "answer"}


class EvaluatorSet(Protocol):
    """The evaluators of an `Eta`."""

    post: PostEvaluator
    pre: PreEvaluator | None
    match: Matcher | None
    late: list[Thread]


class BatchRun:
    """Scores, answers, searches and refusals of a batch so far, by the number of the exchange."""

    def __init__(
        self,
        eta: EvaluatorSet,
        settings: EtaSettings,
        generator: AnswerGenerator,
        exchanges: Sequence[Messages],
        requests: Sequence[Any],
    ) -> None:
        """Args: exchanges: what evaluators read. requests: what the generator reads."""
        self.eta, self.settings, self.generator = eta, settings, generator
        self.exchanges, self.requests = exchanges, requests
        self.pre: list[float | None] = [None] * len(exchanges)
        self.post: dict[int, float] = {}
        self.plain: dict[int, tuple[str, int]] = {}  # answer, its tokens
        self.states: dict[int, SearchState] = {}
        self.reasons: dict[int, str] = {}  # why an exchange is refused
        self.seconds: dict[str, tuple[float, list[int]]] = {}  # of a phase, and the exchanges in it

    def run(self, known_scores: Sequence[float | None] | None) -> None:
        """Answer all. Args: known_scores: of the pre-evaluator; None: it is called."""
        self._evaluate_exchanges(known_scores)
        alive = [i for i in range(len(self.exchanges)) if i not in self.reasons]
        if not alive:
            return
        greedy = self._answer_greedily(alive)
        self._evaluate_answers([i for i in alive if self._is_suspicious(i)])
        unsafe = [row for row, i in enumerate(alive) if self._is_unsafe(i)]
        if unsafe:
            with self._clock("search", [alive[row] for row in unsafe]):
                requests = [self.requests[i] for i in alive]
                for states in self._search(alive).sentences(requests, unsafe, greedy):
                    self.states = {alive[state.number]: state for state in states}

    def pieces(self, known_scores: Sequence[float | None] | None, refusal: str) -> Iterator[str]:
        """The answer to the only exchange, as it comes; see `Eta.stream`."""
        self._evaluate_exchanges(known_scores)
        if not self.reasons and not self._is_suspicious(0):
            yield from self._stream_greedily()
            return
        given = ""
        if not self.reasons:
            greedy = self._answer_greedily([0])
            self._evaluate_answers([0])
            if self._is_unsafe(0):
                given = yield from self._sentences(greedy)
        result = self.result(0, refusal)
        if result.stage == "refused":
            yield f" {refusal}" if given else refusal
        elif not self.states:
            yield result.answer

    def result(self, i: int, refusal: str) -> EtaResult:
        """The result of exchange `i`."""
        answer, tokens = self.plain.get(i, ("", 0))
        # Seconds of each phase that the exchange was in
        seconds = {name: round(s / len(among), 6) for name, (s, among) in self.seconds.items() if i in among}
        stage, reason, state = "evaluated" if i in self.post else "plain", self.reasons.get(i, ""), self.states.get(i)
        search: dict[str, Any] = {}
        if state is not None:
            final = state.sentences[-1].reward if state.sentences else None
            search = {"final": final, "sentences": tuple(state.sentences), "end": state.end, "sampled": state.sampled}
            stage, answer = "aligned", self.generator.text(state.answer_ids)
            reason = reason or self._fault(state)
        if reason:
            stage, answer = "refused", refusal
        pre, post = self.pre[i], self.post.get(i)
        return EtaResult(answer, stage, pre, post, reason=reason, tokens=tokens, seconds=seconds, **search)

    def _fault(self, state: SearchState) -> str:
        """Why an aligned answer is not given, or ""."""
        if not state.sentences:
            return f"the search ended without a whole sentence: {state.end}"
        if self.settings.on_unsafe == "refuse" and state.sentences[-1].reward <= self.eta.post.threshold:
            return "the aligned answer is unsafe as well"
        return ""

    def _evaluate_exchanges(self, known_scores: Sequence[float | None] | None) -> None:
        pre = self.eta.pre
        if pre is None:
            return

        def evaluate(rows: list[int]) -> Sequence[float | None]:
            if known_scores is None:
                return pre([self.exchanges[i] for i in rows])
            return [known_scores[i] for i in rows]

        with self._clock("pre", range(len(self.exchanges))):
            failsafe = Failsafe(self.settings.timeout_s if known_scores is None else None, True, self.eta.late)
            scores = failsafe("the pre-evaluator", pre.unit, len(self.exchanges), evaluate)
        self.pre = [None if i in scores.failures else value for i, value in enumerate(scores.values)]
        self.reasons |= scores.failures

    def _evaluate_answers(self, numbers: list[int]) -> None:
        """Score plain answers."""
        if numbers:
            with self._clock("post", numbers):
                scores = self._rewards(numbers, [self.plain[i][0] for i in numbers])
            self.post |= {i: score for i, score in zip(numbers, scores) if not math.isnan(score)}

    def _is_suspicious(self, i: int) -> bool:
        """Whether the answer to an exchange is to be evaluated."""
        score = self.pre[i]
        return self.eta.pre is None or score is None or score >= self.eta.pre.threshold

    def _is_unsafe(self, i: int) -> bool:
        """Whether a plain answer is unsafe."""
        return i in self.post and self.post[i] <= self.eta.post.threshold

    def _answer_greedily(self, numbers: list[int]) -> GreedyAnswers:
        with self._clock("plain", numbers):
            greedy = self.generator.greedy([self.requests[i] for i in numbers], self.settings.max_new_tokens)
        self.plain = dict(zip(numbers, zip(greedy.answers, greedy.tokens)))
        return greedy

    def _stream_greedily(self) -> Iterator[str]:
        """The plain answer, token by token."""
        pieces = []
        with self._clock("plain", [0]):
            for piece in self.generator.stream(self.requests[0], self.settings.max_new_tokens):
                pieces.append(piece)
                yield piece
        answer = "".join(pieces)
        self.plain[0] = (answer, len(self.generator.tokenizer(answer, add_special_tokens=False)["input_ids"]))

    def _sentences(self, greedy: GreedyAnswers) -> Generator[str, None, str]:
        """The aligned answer, a sentence at a time, until one is unsafe; returns what was given."""
        given, safe = "", False
        with self._clock("search", [0]):
            for states in self._search([0]).sentences(self.requests, [0], greedy):
                state = self.states[0] = states[0]
                safe = bool(state.sentences) and state.end != "failed" and not self._fault(state)
                if not safe:
                    state.end = state.end or ("unsafe" if state.sentences else "")
                    continue
                ready = self.generator.settled_text(state.answer_ids)
                if len(ready) > len(given):  # a sentence may be nothing but the end of the text
                    yield ready[len(given) :]
                    given = ready
            if safe and (rest := self.generator.text(state.answer_ids)[len(given) :]):
                yield rest
        return given

    def _search(self, alive: list[int]) -> Search:
        """The search for these exchanges of the batch."""

        def rewards(rows: Sequence[int], answers: Sequence[str]) -> Sequence[float]:
            return self._rewards([alive[row] for row in rows], answers)

        def cosines(match: TextScore, rows: Sequence[int], sentences: Sequence[str]) -> Sequence[float]:
            return self._scores("the matcher", COSINE, match, [alive[row] for row in rows], sentences)

        match = None if self.eta.match is None else partial(cosines, self.eta.match.match)
        return Search(self.generator, self.settings, rewards, match)

    def _rewards(self, numbers: Sequence[int], answers: Sequence[str]) -> Sequence[float]:
        """Scores of answers by the post-evaluator."""
        return self._scores("the post-evaluator", self.eta.post.unit, self.eta.post, numbers, answers)

    def _scores(
        self, name: str, unit: Unit, evaluate: TextScore, numbers: Sequence[int], texts: Sequence[str]
    ) -> Sequence[float]:
        """Scores of texts for these exchanges, NaN where the evaluator failed: that exchange is then refused."""

        def evaluate_rows(rows: list[int]) -> Sequence[float]:
            return evaluate([self.exchanges[numbers[row]] for row in rows], [texts[row] for row in rows])

        scores = Failsafe(self.settings.timeout_s, late=self.eta.late)(name, unit, len(numbers), evaluate_rows)
        self.reasons |= {numbers[row]: reason for row, reason in scores.failures.items()}
        return cast(list[float], scores.values)  # None is not a score here: `may_pass` is False

    @contextmanager
    def _clock(self, phase: str, numbers: Sequence[int]) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = (time.monotonic() - started, list(numbers))
