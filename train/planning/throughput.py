"""Throughput: some steps of a stage, timed, that leave nothing behind."""

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
from train.arguments import training_arguments
from train.build import build_data, build_model, build_trainer
from train.config import TrainConfig

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
    """What some real steps measured.

    Attributes:
        device: "cpu", or the GPU's name. processes: that took part.
        steps: that were counted. rows: of a step, on all processes.
        seconds: median of a step.
        waiting: fraction of the time spent waiting for rows, on the first process.
        peak: of the GPU's memory, in bytes; None on a CPU.
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


class StepClock(TrainerCallback):
    """Times each step, and how much of it is spent waiting for the loader."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.waits: list[float] = []
        self.waited = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Record the time, once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.waits.append(self.waited)
        self.waited = 0.0

    def timed(self, batches: Iterator) -> Iterator:
        """The same batches; the time spent waiting for each is added up."""
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

    Args: steps: from 2, of which the first few, at least one, are not counted.

    Raises:
        ConfigError: the GPU's memory is too small; and whatever `train.run` would raise.
    """
    clock = StepClock()
    with tempfile.TemporaryDirectory(prefix="plan-") as folder, redirect_stdout(io.StringIO()):
        quiet = {**config.trainer, **QUIET, "max_steps": steps}
        measured = dataclasses.replace(config, output=folder, trainer=quiet)
        arguments = training_arguments(measured)
        model = build_model(measured, arguments)
        trainer = build_trainer(measured, arguments, model, build_data(measured, arguments, model))
        get_batch_samples = trainer.get_batch_samples
        trainer.get_batch_samples = lambda batches, *args: get_batch_samples(clock.timed(batches), *args)
        trainer.add_callback(clock)
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"measuring: the GPU's memory is too small ({str(error).splitlines()[0]}); see the table above"
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
