"""Timing of functions in turns, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Timing:
    """Seconds of each call of a function, and the result of the last one."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    def overhead(self, base: Timing) -> float:
        """How much longer than `base` this takes, as a fraction of it: median over neighbouring calls."""
        return statistics.median(ours / theirs - 1 for ours, theirs in zip(self.seconds, base.seconds))


def time_in_turns(
    functions: Mapping[str, Callable[[], object]], repeats: int, warm_up: bool = False
) -> dict[str, Timing]:
    """Call all functions, one after the other, `repeats` times; with `warm_up` once more, which does not count."""
    timings = {name: Timing() for name in functions}
    for repeat in range(repeats + warm_up):
        for name, function in functions.items():
            start = time.perf_counter()
            timings[name].result = function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            timings[name].seconds += [seconds] if repeat >= warm_up else []
    return timings
