"""Reshard: a DeepSpeed checkpoint of one number of processes, converted so that any number can load it."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from train.loop.loss_watch import TrainingError
from train.loop.resume import read_manifest

logger = logging.getLogger(__name__)


def needs_resharding(checkpoint: Path, processes: int) -> bool:
    """Whether the checkpoint is DeepSpeed's and of another number of processes."""
    return (checkpoint / "latest").is_file() and read_manifest(checkpoint)["processes"] != processes


def reshard(checkpoint: Path) -> None:
    """Write DeepSpeed's universal format, `global_stepN_universal`, beside `global_stepN`, unless it is there already.

    Raises:
        TrainingError: DeepSpeed's own tool failed; its last line.
    """
    done = checkpoint / "latest_universal"
    if done.is_file():
        return
    logger.warning("%s: is resharded for another number of processes", checkpoint)
    step = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    universal = f"{step}_universal"
    folders = ["--input_folder", str(checkpoint / step), "--output_folder", str(checkpoint / universal)]
    tool = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders, "--inject_missing_state"]
    result = subprocess.run(tool, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise TrainingError(
            f"{checkpoint}: cannot be resharded for another number of processes ({lines[-1]}); use as many as before"
        )
    done.write_text(universal, encoding="utf-8")


class UniversalCheckpointFix(TrainerCallback):
    """Undoes what DeepSpeed gets wrong when it loads a universal checkpoint under ZeRO-3, before the first step.

    It gives all parameters one and the same step counter, which then counts once for each of them, and all groups the
    learning rate of the first one. Needed from DeepSpeed 0.18.0, the first that loads several groups, to 0.19.8, the
    newest known; where there is nothing to undo it changes nothing.
    """

    def on_train_begin(self, *_: object, **objects: object) -> None:
        """Called when the checkpoint is loaded."""
        optimizer, scheduler = objects["optimizer"], objects["lr_scheduler"]
        while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
            optimizer = optimizer.optimizer
        for values in optimizer.state.values():
            if torch.is_tensor(values.get("step")):
                values["step"] = values["step"].clone()
        for group, rate, first in zip(optimizer.param_groups, scheduler.get_last_lr(), scheduler.base_lrs):
            group["lr"], group["initial_lr"] = rate, first
