"""Universal: a DeepSpeed checkpoint, cut for one number of processes, made fit for any."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

from train.finite import TrainingError
from train.survival import MANIFEST

logger = logging.getLogger(__name__)

SUFFIX = "_universal"


def cut_for_others(checkpoint: Path, processes: int) -> bool:
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
