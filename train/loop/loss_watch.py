"""Finite: a watch over the losses, which is read only now and then, so that no step waits for the device."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from safety_modules.errors import UserError

SHOWN = 8


class TrainingError(UserError):
    """Training cannot go on; the message says where, and what can be done."""


class LossWatch:
    """The loss terms of each micro-batch since they were last logged, with the names of its rows."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.seen: list[tuple[int, list[str], Tensor]] = []
        self.checked = 0  # of those seen, the first that were checked

    def add(self, step: int, rows: list[str], terms: Tensor) -> None:
        """Note a micro-batch of an optimizer step. Args: terms: (3,), lm, type and level, as they add up to a step's."""
        self.seen.append((step, rows, terms))

    def means(self) -> list[float]:
        """The mean of each term over the steps noted, on all processes; forgets them.

        Raises:
            TrainingError: see `check`.
        """
        self.check()
        if not self.seen:
            return []
        steps = len({step for step, _, _ in self.seen})
        total = torch.stack([terms for _, _, terms in self.seen]).sum(0) / steps  # (3,)
        self.seen, self.checked = [], 0
        return self.accelerator.reduce(total, "mean").tolist()

    def check(self) -> None:
        """All processes stop where a loss of any of them is no number.

        Raises:
            TrainingError: names the step and, on the process that had it first, the rows.
        """
        part = self.seen[self.checked :]
        if not part:
            return
        self.checked = len(self.seen)
        bad = ~torch.stack([terms for _, _, terms in part]).isfinite().all(1)  # (M,)
        first = torch.where(bad, torch.arange(len(part), device=bad.device), len(part)).min()
        mine = int(first)
        earliest = int(self.accelerator.gather(first).min())
        if earliest == len(part):
            return
        step, rows, terms = part[earliest]
        if mine != earliest:
            raise TrainingError(f"step {step}: the loss of another process is not a number; see its message")
        names = ", ".join(rows[:SHOWN]) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
        values = dict(zip(("lm", "type", "level"), terms.tolist()))
        raise TrainingError(
            f"step {step}: the loss is not a number ({values}) on the rows {names}; look at them, or lower the learning rate, or "
            "train with bf16 instead of fp16. The last checkpoint is from before it"
        )
