"""Order: which rows make up each step of an epoch, from the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
from torch.utils.data import Sampler

MIXED = 50  # steps among which rows are sorted by length: enough to be alike, few enough to stay shuffled
PARTS = 4  # of a small data set at least, so that its steps differ from epoch to epoch


class StepSampler(Sampler[int]):
    """The rows of an epoch, shuffled, in whole steps.

    The order depends on the rows of a step, and not on how many processes, batches and accumulations share them: so a run
    gives one curve on any machine, and goes on at the right row on another one. The last step of an epoch is filled up with
    the epoch's first rows.

    With `lengths`, rows with and without images are in different steps, and those of a step are of about equal length: less
    padding, and processes that do not wait for each other. The step of the longest rows is the first of all, so that memory
    runs out at once or never. Source: the original LLaVA recipe groups so; there the order depends on the number of processes.
    """

    def __init__(self, rows: int, step: int, seed: int, lengths: Sequence[tuple[int, bool]] | None = None) -> None:
        """Args: step: rows of an optimizer step, on all processes. lengths: of each row, and whether it has images."""
        self.rows, self.step, self.seed, self.lengths = rows, step, seed, lengths
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.rows // self.step) * self.step

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        if self.lengths is not None:
            order = self._grouped(order, generator)
        return islice(cycle(order), len(self))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is given next."""
        self.epoch = epoch

    def _grouped(self, order: list[int], generator: torch.Generator) -> list[int]:
        """Shuffled rows -> shuffled steps of rows that are alike; what fills no step comes last."""
        steps, rest = [], []
        for kind in (True, False):
            rows = [row for row in order if self.lengths[row][1] == kind]
            whole = len(rows) // self.step * self.step
            rest += rows[whole:]
            size = min(MIXED, max(1, whole // self.step // PARTS)) * self.step
            for start in range(0, whole, size):
                part = sorted(rows[start : min(start + size, whole)], key=lambda row: self.lengths[row][0])
                steps += [part[i : i + self.step] for i in range(0, len(part), self.step)]
        shuffled = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        if self.epoch == 0 and shuffled:
            longest = max(range(len(shuffled)), key=lambda i: self.lengths[shuffled[i][-1]][0])
            shuffled.insert(0, shuffled.pop(longest))
        return [row for step in shuffled for row in step] + rest
