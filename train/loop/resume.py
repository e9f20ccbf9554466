"""Resume: a run that is stopped, killed or out of disk continues from its last complete checkpoint."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType

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
# What Trainer, DeepSpeed and this code write into a checkpoint, complete or not.
WRITTEN = (
    *("model.safetensors*", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json"),
    *("training_args.bin", "global_step*", "latest*", "zero_to_fp32.py", f"{MANIFEST}*"),
)


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGUSR1 finish the step, save and stop, on all processes after the same step.

    `received` is the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received, self.group, self.handlers = 0, None, {}

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Install the handlers; the processes agree over a CPU group of their own, so that no device is waited for."""
        if dist.is_initialized() and self.group is None:
            self.group = dist.new_group(backend="gloo")
        self.handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Agree whether to stop: a signal may reach one process a step before another."""
        if self.group is not None:
            flag = torch.tensor(self.received)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
            self.received = int(flag)
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, *_: object, **__: object) -> None:
        """Restore the handlers."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number


class CheckpointManifest(TrainerCallback):
    """Lists a checkpoint's files once all are written: one without the list, or that differs, is incomplete."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """The first process writes it, after all have written their files."""
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
            for path in files:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            manifest = {
                "step": state.global_step,
                "global_batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                "processes": args.world_size,
                "files": {str(path.relative_to(folder)): path.stat().st_size for path in files},
            }
            write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        if dist.is_initialized():
            dist.barrier()  # torchrun and SLURM end the others soon after the first process ends


def read_manifest(checkpoint: Path) -> dict:
    """What `CheckpointManifest` wrote; OSError or ValueError where it cannot be read."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))


def last_complete_checkpoint(output: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None. Nothing is changed."""
    return next((folder for folder in _newest_first(output) if not _fault(folder)), None)


def remove_incomplete_checkpoints(output: str | Path) -> None:
    """Remove checkpoints after the last complete one: Trainer would count them, and delete a good one in their place.

    The first process does. One with files that no run wrote is left as it is, and is a ConfigError.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    for folder in _newest_first(output):
        if not (fault := _fault(folder)):
            return
        for path in folder.iterdir():
            if not any(fnmatch(path.name, pattern) for pattern in WRITTEN):
                raise ConfigError(f"{folder}: is incomplete ({fault}), but no run wrote {path.name}; move it away")
        logger.warning("%s is not used: %s", folder, fault)
        shutil.rmtree(folder)


def _newest_first(output: str | Path) -> list[Path]:
    """The checkpoints of a run, complete or not."""
    steps = {path: int(m[1]) for path in Path(output).glob("checkpoint-*") if (m := FOLDER.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def _fault(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, or "" where it is complete."""
    try:
        files = read_manifest(checkpoint)["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}: the run ended while it was written"
    except (ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            state = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            return f"{name} is {state}, not {size} bytes"
    return ""


def matching_accumulation(checkpoint: Path, micro_batch: int, accumulation: int, processes: int) -> int:
    """The accumulation with which a step has as many rows as before, so that the run continues at the right row.

    Args: micro_batch: rows of one forward pass on one process. accumulation: as configured.

    Raises:
        ConfigError: no accumulation gives as many.
    """
    manifest = read_manifest(checkpoint)
    rows = manifest["global_batch_size"]
    if rows == micro_batch * accumulation * processes:
        return accumulation
    if rows % processes:
        raise ConfigError(
            f"{checkpoint}: its steps have {rows} rows, which cannot be divided among {processes} processes; "
            f"use a number of processes that divides {rows}"
        )
    if rows % (micro_batch * processes):
        sizes = [size for size in range(1, rows // processes + 1) if rows % (size * processes) == 0]
        raise ConfigError(
            f"{checkpoint}: its steps have {rows} rows, which {processes} processes with a batch of {micro_batch} "
            f"cannot make up; set trainer.per_device_train_batch_size to one of {sizes}"
        )
    needed = rows // (micro_batch * processes)
    logger.warning(
        "%s was written by %d processes, now there are %d: gradient_accumulation_steps goes from %d to %d, so that a "
        "step still has %d rows. The run continues at the same row; dropout draws other numbers",
        *(checkpoint, manifest["processes"], processes, accumulation, needed, rows),
    )
    return needed


def disk_error(error: Exception, output: str | Path) -> TrainingError:
    """The message when a checkpoint cannot be written."""
    last = last_complete_checkpoint(output)
    free = shutil.disk_usage(output).free / 2**30
    state = f"{last} is complete; run it again to continue from it" if last else "there is no earlier checkpoint"
    reason = str(error).strip().splitlines()[0]
    return TrainingError(
        f"{output}: a checkpoint could not be written ({reason}; {free:.2f} GiB are free). Make room; {state}"
    )


def is_incomplete(output: str | Path, step: int) -> bool:
    """Whether a checkpoint of this step was begun and not finished."""
    folder = Path(output) / f"checkpoint-{step}"
    return folder.is_dir() and not (folder / MANIFEST).is_file()


def worker_message(error: Exception) -> str:
    """The message of an error that a loader's worker passed on with its whole traceback around it."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
