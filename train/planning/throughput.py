"""Probe: some steps of a stage, timed, that leave nothing behind."""

from __future__ import annotations

import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safety_modules.config import ConfigError
from train.config import TrainConfig
from train.run import prepare

WARM = 5  # steps at the start that are not counted, at most a quarter of all
QUIET = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "load_best_model_at_end": False,
    "push_to_hub": False,
}


@dataclass(frozen=True)
class Speed:
    """What a probe measured.

    Attributes:
        device: "cpu", or the GPU's name. processes: that took part.
        steps: counted. rows: of a step, on all processes.
        seconds: median of a step.
        waiting: share of time spent waiting for rows, on the first process.
        peak: bytes of the GPU at most; None on a CPU.
    """

    device: str
    processes: int
    steps: int
    rows: int
    seconds: float
    waiting: float
    peak: int | None

    @property
    def rows_per_second(self) -> float:
        """Of all processes."""
        return self.rows / self.seconds


class Clock(TrainerCallback):
    """Times each step, and of it the time in which the loader is waited for."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.waits: list[float] = []
        self.waited = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Note the time, once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.waits.append(self.waited)
        self.waited = 0.0

    def over(self, batches: Iterator) -> Iterator:
        """The same batches; the time for each is added up."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch

    def steps(self) -> tuple[list[float], list[float]]:
        """Seconds of each counted step, and of its waiting."""
        skip = min(WARM, len(self.ends) // 4)
        lengths = [end - start for start, end in zip(self.ends, self.ends[1:])]
        return lengths[skip:], self.waits[1:][skip:]


def measure(config: TrainConfig, steps: int) -> Speed:
    """Train for some steps as `train.run` would, in a folder that is then removed; every process must call it.

    Args: steps: from 2, of which the first, at least one, are not counted.

    Raises:
        ConfigError: the GPU's memory is too small; and whatever `train.run` would raise.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="plan-") as folder, redirect_stdout(io.StringIO()):
        quiet = {**config.trainer, **QUIET, "max_steps": steps}
        trainer, *_ = prepare(dataclasses.replace(config, output=folder, trainer=quiet))
        take = trainer.get_batch_samples
        trainer.get_batch_samples = lambda batches, *args: take(clock.over(batches), *args)
        trainer.add_callback(clock)
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"probe: the GPU's memory is too small ({str(error).splitlines()[0]}); see the table above"
            ) from error
        args = trainer.args
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    lengths, waits = clock.steps()
    cuda = torch.cuda.is_available() and not args.use_cpu
    return Speed(
        torch.cuda.get_device_name() if cuda else "cpu",
        args.world_size,
        len(lengths),
        rows,
        statistics.median(lengths),
        sum(waits) / sum(lengths),
        torch.cuda.max_memory_allocated() if cuda else None,
    )
