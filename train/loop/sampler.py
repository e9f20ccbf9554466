"""StepSampler: which rows make up each step of an epoch, from the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
from torch.utils.data import Sampler

SORTED_STEPS = 50  # steps among which rows are sorted by length: enough to be alike, few enough to stay shuffled
MIN_PARTS = 4  # that even a small data set is sorted in, so that its steps differ from epoch to epoch


class StepSampler(Sampler[int]):
    """The rows of an epoch, shuffled, in whole steps.

    They do not depend on how many processes, batches and accumulation steps a step is divided among: so a run gives one
    curve on any machine, and continues at the right row on another one. The last step of an epoch is filled up with the
    epoch's first rows.

    With `lengths`, rows with and without images are in different steps, and those of a step are of about equal length:
    less padding, and processes that do not wait for each other. The step of the longest rows is the first of all, so
    that memory runs out at once or never. Source: LLaVA's training code; its order depends on the number of processes.
    """

    def __init__(
        self, rows: int, global_batch_size: int, seed: int, lengths: Sequence[tuple[int, bool]] | None = None
    ) -> None:
        """Sample rows in whole steps.

        Args:
            rows: their number.
            global_batch_size: rows of an optimizer step, on all processes.
            lengths: of each row, and whether it has images.
        """
        self.rows, self.global_batch_size, self.seed, self.lengths = rows, global_batch_size, seed, lengths
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.rows // self.global_batch_size) * self.global_batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        if self.lengths is not None:
            order = self._grouped(order, generator)
        return islice(cycle(order), len(self))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is returned next."""
        self.epoch = epoch

    def _grouped(self, order: list[int], generator: torch.Generator) -> list[int]:
        """Shuffled rows -> shuffled steps of rows that are alike; those that do not fill a step come last."""
        size, lengths = self.global_batch_size, self.lengths
        steps, rest = [], []
        for has_images in (True, False):
            rows = [row for row in order if lengths[row][1] == has_images]
            whole = len(rows) // size * size
            rest += rows[whole:]
            part = min(SORTED_STEPS, max(1, whole // size // MIN_PARTS)) * size
            for start in range(0, whole, part):
                alike = sorted(rows[start : min(start + part, whole)], key=lambda row: lengths[row][0])
                steps += [alike[i : i + size] for i in range(0, len(alike), size)]
        shuffled = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        if self.epoch == 0 and shuffled:
            longest = max(range(len(shuffled)), key=lambda i: lengths[shuffled[i][-1]][0])
            shuffled.insert(0, shuffled.pop(longest))
        return [row for step in shuffled for row in step] + rest
