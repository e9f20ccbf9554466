"""LossWatch: the loss terms of each micro-batch, read and checked for NaN only when they are logged or saved."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from safety_modules.errors import UserError

SHOWN = 8


class TrainingError(UserError):
    """Training cannot continue; the message says where, and what can be done."""


class LossWatch:
    """The loss terms of each micro-batch since they were last logged, with the names of its rows.

    They stay on the device, so that no step waits for it.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.losses: list[tuple[int, list[str], Tensor]] = []  # step, names of the rows, terms (3,)
        self.checked = 0  # how many of these were checked

    def add(self, step: int, rows: list[str], terms: Tensor) -> None:
        """Record a micro-batch of an optimizer step. Args: terms: (3,): lm, type, level; those of a step are summed."""
        self.losses.append((step, rows, terms))

    def means(self) -> list[float]:
        """The mean of each term over the recorded steps, on all processes, after `check`; the records are dropped."""
        self.check()
        if not self.losses:
            return []
        steps = len({step for step, _, _ in self.losses})
        total = torch.stack([terms for _, _, terms in self.losses]).sum(0) / steps  # (3,)
        self.losses, self.checked = [], 0
        return self.accelerator.reduce(total, "mean").tolist()

    def check(self) -> None:
        """All processes stop where a loss of any of them is NaN or infinite.

        Raises:
            TrainingError: names the step and, on the process that had it first, the rows.
        """
        new = self.losses[self.checked :]
        if not new:
            return
        self.checked = len(self.losses)
        bad = ~torch.stack([terms for _, _, terms in new]).isfinite().all(1)  # (M,)
        first = torch.where(bad, torch.arange(len(new), device=bad.device), len(new)).min()
        earliest = int(self.accelerator.gather(first).min())
        if earliest == len(new):
            return
        step, rows, terms = new[earliest]
        if int(first) != earliest:
            raise TrainingError(f"step {step}: the loss of another process is not a number; see its message")
        names = ", ".join(rows[:SHOWN]) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
        values = dict(zip(("lm", "type", "level"), terms.tolist()))
        raise TrainingError(
            f"step {step}: the loss is not a number ({values}) on the rows {names}; check them, or lower the learning "
            "rate, or train with bf16 instead of fp16. The last checkpoint is from before it"
        )
