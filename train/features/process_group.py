"""RunProcesses: the processes of one run, which divide a piece of work among them and exchange the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from safety_modules.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(days=7)  # the first to finish waits for the last; one that fails is noticed at once


class RunProcesses:
    """All processes that torchrun started, or this one alone. A context: `with RunProcesses() as processes`.

    A process that fails leaves the context, which ends the others when they next wait for it: none waits for ever.
    """

    def __enter__(self) -> RunProcesses:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        # a group of its own: that of the GPUs fails after half an hour of waiting
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if several else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def share(self, items: Sequence[T], rank: int | None = None) -> Sequence[T]:
        """The items that this process works on, or the one of another rank."""
        return items[self.rank if rank is None else rank :: self.count]

    def gather(self, item: T) -> list[T]:
        """The item of each process, by rank. Every process must call it.

        Raises:
            UserError: another process has ended.
        """
        if self._group is None:
            return [item]
        gathered: list[T] = [item] * self.count
        try:
            dist.all_gather_object(gathered, item, group=self._group)
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank}: another process of this run has ended; its own message says why"
            ) from error
        return gathered

    def exchange(self, items: Sequence[T]) -> Iterator[T]:
        """The items of all processes; one of each is in memory at a time. Every process must exhaust it."""
        for place in range(max(self.gather(len(items)))):
            for part in self.gather(items[place : place + 1]):
                yield from part
