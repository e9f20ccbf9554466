"""Eta: evaluate an answer, and align it where it is unsafe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Thread
from typing import Any

from safety_modules.eta.batch_run import BatchRun, EtaResult
from safety_modules.eta.evaluators.protocols import Matcher, Messages, PostEvaluator, PreEvaluator
from safety_modules.eta.generator import AnswerGenerator
from safety_modules.eta.settings import EtaSettings


class Eta:
    """Evaluate, then align.

    Source: ETA (arXiv 2410.06625) section 3: an answer is aligned where exchange and answer are both unsafe. The
    release evaluates the answer first; here the exchange is evaluated first, which costs less and gives the same
    outcome. Differs: without an image the answer alone decides; where the aligned answer is unsafe as well, or an
    evaluator fails, the exchange is refused.
    """

    def __init__(
        self,
        post: PostEvaluator,
        pre: PreEvaluator | None = None,
        match: Matcher | None = None,
        settings: EtaSettings | None = None,
    ) -> None:
        """Combine evaluators.

        Args:
            post: scores answers, and guides the search.
            pre: scores exchanges; None: every answer is evaluated.
            match: the image's term in the search, such as the `Clip` that is `pre`; None: the reward alone.
            settings: the paper's by default.

        Raises:
            EtaError: a threshold is not in its evaluator's unit.
        """
        for name, evaluator in {"post": post, "pre": pre}.items():
            if evaluator is not None:
                evaluator.unit.check(f"{name}.threshold", evaluator.threshold)
        self.post, self.pre, self.match = post, pre, match
        self.settings = settings or EtaSettings()
        self.late: list[Thread] = []  # evaluators' calls that timed out; see `Failsafe`

    def __call__(
        self,
        generator: AnswerGenerator,
        exchanges: Sequence[Messages],
        requests: Sequence[Any] | None = None,
        known_scores: Sequence[float] | None = None,
        max_new_tokens: int | None = None,
        refuse: Callable[[int], str] | None = None,
    ) -> list[EtaResult]:
        """Answer exchanges, in batches of `settings.batch_size`.

        Args:
            exchanges: what the evaluators read.
            requests: what the generator reads in their place; None: the same.
            known_scores: scores of `pre` that are there already, checked like its own; None: `pre` is called.
            max_new_tokens: in place of the settings'.
            refuse: number of an exchange -> its refusal; None: the settings'.
        """
        settings, requests = self._settings(max_new_tokens), exchanges if requests is None else requests
        results = []
        for start in range(0, len(exchanges), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            batch_run = BatchRun(self, settings, generator, exchanges[part], requests[part])
            batch_run.run(None if known_scores is None else known_scores[part])
            for i in range(len(batch_run.exchanges)):
                results.append(batch_run.result(i, refuse(start + i) if refuse else settings.refusal))
        return results

    def stream(
        self,
        generator: AnswerGenerator,
        exchange: Messages,
        request: Any = None,
        known_scores: float | None = None,
        max_new_tokens: int | None = None,
        refusal: str | None = None,
        done: Callable[[EtaResult], None] | None = None,
    ) -> Iterator[str]:
        """Answer one exchange piece by piece; what is yielded, joined, is the answer.

        A safe exchange is answered token by token. Any other answer is first evaluated as a whole; where it must be
        aligned, the search's sentences follow as they are accepted. What was yielded cannot be taken back: with
        `on_unsafe` "refuse", the first sentence that leaves the answer unsafe is not yielded, and a refusal ends the
        stream.

        Args:
            done: called at the end with the result, whose answer is what was yielded; the others are as in `__call__`.
        """
        settings = self._settings(max_new_tokens)
        batch_run = BatchRun(self, settings, generator, [exchange], [exchange if request is None else request])
        refusal_text, pieces = refusal or settings.refusal, []
        for piece in batch_run.pieces(None if known_scores is None else [known_scores], refusal_text):
            pieces.append(piece)
            yield piece
        if done is not None:
            done(replace(batch_run.result(0, refusal_text), answer="".join(pieces)))

    def _settings(self, max_new_tokens: int | None) -> EtaSettings:
        return self.settings if max_new_tokens is None else replace(self.settings, max_new_tokens=max_new_tokens)
