"""Eta: evaluate an answer, and align it where it is unsafe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Thread

from safety_modules.eta.batch_run import BatchRun, EtaResult
from safety_modules.eta.evaluators.protocols import Matcher, Messages, PostEvaluator, PreEvaluator
from safety_modules.eta.generator import AnswerGenerator
from safety_modules.eta.settings import EtaSettings


class Eta:
    """Evaluate, then align.

    Source: ETA (arXiv 2410.06625) section 3: an answer is aligned only where the exchange and the answer are both unsafe. The
    release evaluates the answer first; here the exchange is, because that is cheaper and the outcome is the same. Differs: where
    there is no image the answer alone decides; where the aligned answer is unsafe as well, or an evaluator fails, the
    exchange is refused.
    """

    def __init__(
        self,
        post: PostEvaluator,
        pre: PreEvaluator | None = None,
        match: Matcher | None = None,
        settings: EtaSettings | None = None,
    ) -> None:
        """Put evaluators together.

        Args:
            post: judges answers, and guides the search.
            pre: judges exchanges; None: every answer is judged.
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
        self.late: list[Thread] = []  # evaluators' calls that were left behind; see `Failsafe`

    def __call__(
        self,
        generator: AnswerGenerator,
        exchanges: Sequence[Messages],
        asks: Sequence[object] | None = None,
        known: Sequence[float] | None = None,
        max_new_tokens: int | None = None,
        refuse: Callable[[int], str] | None = None,
    ) -> list[EtaResult]:
        """Answer exchanges, in batches of `settings.batch_size`.

        Args:
            exchanges: what the evaluators read.
            asks: what the speaker reads in their place; None: the same.
            known: scores of `pre` that are there already, checked like its own; None: it is asked.
            max_new_tokens: in place of the settings'.
            refuse: number of an exchange -> its refusal; None: the settings'.
        """
        settings, asks = self._settings(max_new_tokens), exchanges if asks is None else asks
        results = []
        for start in range(0, len(exchanges), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            batch_run = BatchRun(self, settings, generator, exchanges[part], asks[part])
            batch_run.run(None if known is None else known[part])
            for i in range(len(batch_run.exchanges)):
                results.append(batch_run.result(i, refuse(start + i) if refuse else settings.refusal))
        return results

    def stream(
        self,
        generator: AnswerGenerator,
        exchange: Messages,
        ask: object = None,
        known: float | None = None,
        max_new_tokens: int | None = None,
        refusal: str | None = None,
        done: Callable[[EtaResult], None] | None = None,
    ) -> Iterator[str]:
        """Answer one exchange piece by piece; what is yielded, joined, is the answer.

        A safe exchange is answered token by token. Any other answer is first evaluated whole; where it must be aligned, the
        search's sentences follow as they are accepted. What has been said cannot be taken back: with `on_unsafe` "refuse", the
        first sentence that leaves the answer unsafe is not said, and a refusal ends it.

        Args:
            done: is given the result at the end, with the text that was said; the others are as in `__call__`.
        """
        settings = self._settings(max_new_tokens)
        batch_run = BatchRun(self, settings, generator, [exchange], [exchange if ask is None else ask])
        refusal, said = refusal or settings.refusal, []
        for piece in batch_run.pieces(None if known is None else [known], refusal):
            said.append(piece)
            yield piece
        if done is not None:
            done(replace(batch_run.result(0, refusal), answer="".join(said)))

    def _settings(self, max_new_tokens: int | None) -> EtaSettings:
        return self.settings if max_new_tokens is None else replace(self.settings, max_new_tokens=max_new_tokens)
