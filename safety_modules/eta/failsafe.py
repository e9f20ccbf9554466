"""Failsafe: calls evaluators; whatever goes wrong is a failure of those rows, never a pass."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from safety_modules.eta.evaluators.protocols import EtaError, Unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """What an evaluator said.

    Attributes:
        values: one for each row; None where it had nothing to judge, NaN where it failed.
        failures: number of a row -> why it has no score.
    """

    values: list[float | None]
    failures: dict[int, str]


class Late(Exception):
    """An evaluator took too long."""


@dataclass(frozen=True)
class Failsafe:
    """Calls an evaluator within a time, checks what it returns, and tells which rows it failed on.

    An error in a batch is narrowed down: its rows are then judged one by one. A late batch is not tried again.

    Attributes:
        timeout_s: for one call; None for no bound.
        may_pass: whether None is a score: "nothing to judge".
        late: calls that were left behind. The next waits for their end, within its own time: no evaluator has two to bear.
    """

    timeout_s: float | None
    may_pass: bool = False
    late: list[threading.Thread] = field(default_factory=list)

    def __call__(
        self, name: str, unit: Unit, rows: int, judge: Callable[[list[int]], Sequence[float | None]]
    ) -> Scores:
        """Scores of rows 0 to `rows` - 1.

        Args:
            name: of the evaluator, for reasons and the log.
            judge: numbers of rows -> their scores.
        """
        numbers = list(range(rows))
        try:
            found = [self._checked(name, unit, rows, judge, numbers)]
        except Late as error:
            found = [Scores([math.nan] * rows, dict.fromkeys(numbers, str(error)))]
        except Exception as error:  # noqa: BLE001 - an evaluator may be anybody's code: any error is a failure of its rows
            if rows == 1:
                found = [Scores([math.nan], {0: f"{name} failed: {type(error).__name__}: {error}"})]
            else:
                found = [self(name, unit, 1, lambda _, i=i: judge([i])) for i in numbers]
        failures = {
            at: reason for i, scores in enumerate(found) for j, reason in scores.failures.items() for at in [i + j]
        }
        if len(found) == 1:
            for reason in dict.fromkeys(failures.values()):
                logger.error("%s; its exchange is refused", reason)
        return Scores([value for scores in found for value in scores.values], failures)

    def _checked(
        self, name: str, unit: Unit, rows: int, judge: Callable[[list[int]], Sequence[float | None]], numbers: list[int]
    ) -> Scores:
        """One call, and each of its scores checked."""
        values = self._in_time(name, lambda: list(judge(numbers)))  # all of what is worked out as it is read
        if len(values) != rows:
            raise EtaError(f"{name} returned {len(values)} scores for {rows} rows; it must return one each")
        failures = {}
        for i, value in enumerate(values):
            if value is None and self.may_pass:
                continue
            try:
                values[i] = unit.check(f"{name}'s score", value)
            except EtaError as error:
                values[i], failures[i] = math.nan, str(error)
        return Scores(values, failures)

    def _in_time(self, name: str, call: Callable[[], Sequence[float | None]]) -> Sequence[float | None]:
        """The call's result; it runs in a thread of its own, which is left behind where it is late."""
        if self.timeout_s is None:
            return call()
        self.late[:] = [before for before in self.late if before.is_alive()]
        outcome, before, gone = [], tuple(self.late), threading.Event()

        def work() -> None:
            try:
                for worker in before:
                    worker.join()
                if not gone.is_set():
                    outcome.append((call(), None))
            except BaseException as error:  # noqa: BLE001 - handed on to the caller
                outcome.append((None, error))

        worker = threading.Thread(target=work, daemon=True, name=f"eta {name}")
        worker.start()
        worker.join(self.timeout_s)
        if not outcome:
            gone.set()
            self.late.append(worker)
            raise Late(f"{name} did not answer within {self.timeout_s:g} s")
        result, error = outcome[0]
        if error is not None:
            raise error
        return result
