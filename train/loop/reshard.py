"""Universal: a DeepSpeed checkpoint, cut for one number of processes, made fit for any."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.loop.loss_watch import TrainingError
from train.loop.resume import MANIFEST

logger = logging.getLogger(__name__)

SUFFIX = "_universal"


def needs_resharding(checkpoint: Path, processes: int) -> bool:
    """Whether the checkpoint is DeepSpeed's and of another number of processes."""
    written = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["processes"]
    return (checkpoint / "latest").is_file() and written != processes


def convert(checkpoint: Path) -> None:
    """Write `global_stepN_universal` beside the checkpoint's `global_stepN`, by DeepSpeed's own tool; once is enough.

    Raises:
        TrainingError: the tool failed; its last line.
    """
    tag = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    done = checkpoint / "latest_universal"
    if done.is_file():
        return
    logger.warning("%s: DeepSpeed's parts are made anew for another number of processes", checkpoint)
    folders = ["--input_folder", str(checkpoint / tag), "--output_folder", str(checkpoint / (tag + SUFFIX))]
    tool = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *folders, "--inject_missing_state"]
    result = subprocess.run(tool, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise TrainingError(f"{checkpoint}: cannot be made fit for another number of processes: {lines[-1]}")
    done.write_text(tag + SUFFIX, encoding="utf-8")


class Repair(TrainerCallback):
    """What DeepSpeed's loading of such a checkpoint gets wrong under ZeRO-3 (0.19), put right before the first step.

    It gives all parameters one and the same step counter, which then counts once for each of them, and all groups the
    learning rate of the first one.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: object
    ) -> None:
        """Called when the checkpoint is loaded."""
        optimizer, scheduler = objects["optimizer"], objects["lr_scheduler"]
        while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
            optimizer = optimizer.optimizer
        for values in optimizer.state.values():
            if torch.is_tensor(values.get("step")):
                values["step"] = values["step"].clone()
        for group, rate, first in zip(optimizer.param_groups, scheduler.get_last_lr(), scheduler.base_lrs):
            group["lr"], group["initial_lr"] = rate, first
