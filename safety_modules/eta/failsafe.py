"""Failsafe: calls evaluators; whatever goes wrong is a failure of those rows, never a pass."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from safety_modules.eta.evaluators.protocols import EtaError, Unit

logger = logging.getLogger(__name__)

Evaluate = Callable[[list[int]], Sequence[float | None]]  # numbers of rows -> their scores


@dataclass(frozen=True)
class EvaluatorScores:
    """What an evaluator returned.

    Attributes:
        values: one for each row; None where it had nothing to score, NaN where it failed.
        failures: number of a row -> why it has no score.
    """

    values: list[float | None]
    failures: dict[int, str]


class EvaluatorTimeout(Exception):
    """An evaluator took too long."""


@dataclass(frozen=True)
class Failsafe:
    """Calls an evaluator within a time limit, checks what it returns, and reports the rows it failed on.

    After an error in a batch its rows are evaluated one by one. A batch that timed out is not tried again.

    Attributes:
        timeout_s: for one call; None for no limit.
        may_pass: whether None is a score: "nothing to score".
        late: calls that timed out and still run. The next call waits for their end, within its own time limit, so that
            an evaluator never has two calls at once.
    """

    timeout_s: float | None
    may_pass: bool = False
    late: list[threading.Thread] = field(default_factory=list)

    def __call__(self, name: str, unit: Unit, rows: int, evaluate: Evaluate) -> EvaluatorScores:
        """Scores of rows 0 to `rows` - 1; `name` is the evaluator's, for reasons and the log."""
        scores = self._scores(name, unit, list(range(rows)), evaluate)
        for reason in dict.fromkeys(scores.failures.values()):
            logger.error("%s; its exchange is refused", reason)
        return scores

    def _scores(self, name: str, unit: Unit, numbers: list[int], evaluate: Evaluate) -> EvaluatorScores:
        """Scores of these rows, together or else one by one."""
        try:
            return self._checked(name, unit, numbers, evaluate)
        except EvaluatorTimeout as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - an evaluator may be anybody's code: any error is a failure of its rows
            if len(numbers) > 1:
                single = [self._scores(name, unit, [i], evaluate) for i in numbers]
                failures = {i: why for scores in single for i, why in scores.failures.items()}
                return EvaluatorScores([value for scores in single for value in scores.values], failures)
            reason = f"{name} failed: {type(error).__name__}: {error}"
        return EvaluatorScores([math.nan] * len(numbers), dict.fromkeys(numbers, reason))

    def _checked(self, name: str, unit: Unit, numbers: list[int], evaluate: Evaluate) -> EvaluatorScores:
        """One call, and each of its scores checked."""
        values = self._in_time(name, lambda: list(evaluate(numbers)))  # a lazy result is computed within the time limit
        if len(values) != len(numbers):
            raise EtaError(f"{name} returned {len(values)} scores for {len(numbers)} rows; it must return one each")
        failures = {}
        for i, value in enumerate(values):
            if value is None and self.may_pass:
                continue
            try:
                values[i] = unit.check(f"{name}'s score", value)
            except EtaError as error:
                values[i], failures[numbers[i]] = math.nan, str(error)
        return EvaluatorScores(values, failures)

    def _in_time(self, name: str, call: Callable[[], list[float | None]]) -> list[float | None]:
        """The call's result; it runs in a thread of its own, which goes on alone after a timeout."""
        if self.timeout_s is None:
            return call()
        self.late[:] = [worker for worker in self.late if worker.is_alive()]
        earlier, gone = tuple(self.late), threading.Event()
        results: list[list[float | None]] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for worker in earlier:
                    worker.join()
                if not gone.is_set():
                    results.append(call())
            except BaseException as error:  # noqa: BLE001 - raised again by the caller
                errors.append(error)

        worker = threading.Thread(target=work, daemon=True, name=f"eta {name}")
        worker.start()
        worker.join(self.timeout_s)
        if errors:
            raise errors[0]
        if not results:
            gone.set()
            self.late.append(worker)
            raise EvaluatorTimeout(f"{name} did not answer within {self.timeout_s:g} s")
        return results[0]
