"""Survival: a run that is stopped, killed or out of disk goes on from its last whole checkpoint."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safety_modules.config import ConfigError
from safety_modules.files import write_text
from train.loop.loss_watch import TrainingError

logger = logging.getLogger(__name__)

MANIFEST = "complete.json"
FOLDER = re.compile(r"checkpoint-(\d+)")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of torchrun and schedulers that end a job


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGUSR1 finish the step, save and stop, on all processes after the same step.

    `received` is the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received, self.group, self.before = 0, None, {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Listen; the processes talk over a group of their own, on the CPU, so that no device is waited for."""
        if dist.is_initialized() and self.group is None:
            self.group = dist.new_group(backend="gloo")
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Agree whether to stop: a signal may reach one process a step before another."""
        if self.group is not None:
            flag = torch.tensor(self.received)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
            self.received = int(flag)
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.received = number


class CheckpointManifest(TrainerCallback):
    """After a checkpoint, the list of its files: one without the list, or that differs from it, is not whole."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Written by the first process, when all have written theirs."""
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
            for path in files:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            data = {
                "step": state.global_step,
                "rows_of_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                "processes": args.world_size,
                "files": {str(path.relative_to(folder)): path.stat().st_size for path in files},
            }
            write_text(folder / MANIFEST, json.dumps(data, indent=1) + "\n")
        if dist.is_initialized():
            dist.barrier()  # torchrun and SLURM end the others soon after the first process ends


def fault(folder: Path) -> str:
    """What is wrong with a checkpoint, or "" where it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}: the run ended while it was written"
    except (ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            return f"{name} is {found}, not {size} bytes"
    return ""


def last_complete_checkpoint(output: str | Path, clear: bool = True) -> Path | None:
    """The newest whole checkpoint of a run, or None.

    Args: clear: the first process removes the others that are newer: Trainer would count them, and delete a good one in their
        place.
    """
    first = os.environ.get("RANK", "0") == "0"
    found = {int(m[1]): path for path in Path(output).glob("checkpoint-*") if (m := FOLDER.fullmatch(path.name))}
    for step in sorted(found, reverse=True):
        reason = fault(found[step])
        if not reason:
            return found[step]
        if first:
            logger.warning("%s is not used: %s", found[step], reason)
        if first and clear:
            shutil.rmtree(found[step])
    return None


def matching_accumulation(checkpoint: Path, batch: int, accumulation: int, processes: int) -> int:
    """The accumulation with which a step has as many rows as before, on another number of processes or with another batch.

    So the run goes on at the right row, with the same schedule.

    Args: batch: rows of a micro-batch on one process. accumulation: as configured.

    Raises:
        ConfigError: no number of accumulations gives as many.
    """
    data = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    rows = data["rows_of_step"]
    if rows == batch * accumulation * processes:
        return accumulation
    if rows % (batch * processes):
        fits = [size for size in range(1, rows // processes + 1) if rows % (size * processes) == 0]
        raise ConfigError(
            f"{checkpoint}: its steps have {rows} rows, which {processes} processes with a batch of {batch} cannot make up; set "
            f"trainer.per_device_train_batch_size to one of {fits}"
            if fits
            else f"{checkpoint}: its steps have {rows} rows, which {processes} processes cannot share; use a number of processes "
            f"that divides {rows}"
        )
    needed = rows // (batch * processes)
    logger.warning(
        "%s was written by %d processes, now there are %d: gradient_accumulation_steps goes from %d to %d, so that a step still "
        "has %d rows. The run goes on at the same row; dropout is drawn anew",
        checkpoint,
        data["processes"],
        processes,
        accumulation,
        needed,
        rows,
    )
    return needed


def disk_error(error: Exception, output: str | Path) -> TrainingError:
    """What to say when a checkpoint cannot be written."""
    last = last_complete_checkpoint(output, clear=False)
    free = shutil.disk_usage(output).free / 2**30
    kept = f"{last} is whole; the same command goes on from it" if last else "there is no earlier checkpoint"
    reason = str(error).strip().splitlines()[0]
    return TrainingError(
        f"{output}: a checkpoint could not be written ({reason}; {free:.2f} GiB are free). Make room; {kept}"
    )


def is_incomplete(output: str | Path, step: int) -> bool:
    """Whether a checkpoint of this step was begun and not ended."""
    folder = Path(output) / f"checkpoint-{step}"
    return folder.is_dir() and not (folder / MANIFEST).is_file()


def worker_message(error: Exception) -> str:
    """The message of an error that a loader's worker passed on with its whole traceback around it."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
