"""TrainingArguments of a stage: what this code needs, with the configuration's `trainer` over it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from safety_modules.config import ConfigError
from train.config import TrainConfig
from train.loop.reshard import needs_resharding
from train.loop.resume import matching_accumulation


def training_arguments(config: TrainConfig, checkpoint: Path | None = None) -> TrainingArguments:
    """The stage's TrainingArguments. No file is written or removed.

    Args:
        checkpoint: the one that the run continues from. The accumulation is then such that a step has as many rows as
            before, and DeepSpeed reads a resharded checkpoint where the number of processes differs.

    Raises:
        ConfigError: a value that TrainingArguments refuses, a DeepSpeed file that does not exist, or a batch size with
            which the checkpoint cannot be continued.
    """
    gpu = torch.cuda.is_available()
    values = {
        "output_dir": config.output,
        "report_to": "tensorboard",
        "remove_unused_columns": False,
        "label_names": ["risk_type", "risk_level"],
        "use_cpu": not gpu,
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,  # reads the loss in each step; LossWatch reads it when it is logged
        "accelerator_config": {"non_blocking": gpu},
        "dataloader_persistent_workers": bool(config.trainer.get("dataloader_num_workers")),
        **config.trainer,
        "use_liger_kernel": False,  # build_model applies it; Trainer knows no kernels for a model around another
    }
    deepspeed = values.get("deepspeed")
    if isinstance(deepspeed, str) and not Path(deepspeed).is_file():
        raise ConfigError(f"trainer.deepspeed: there is no file {deepspeed!r}; name one, e.g. train/configs/zero2.json")
    if checkpoint:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        micro_batch = int(values.get("per_device_train_batch_size", 8))  # as TrainingArguments has it
        steps = int(values.get("gradient_accumulation_steps", 1))
        values["gradient_accumulation_steps"] = matching_accumulation(checkpoint, micro_batch, steps, processes)
        if deepspeed and needs_resharding(checkpoint, processes):
            settings = json.loads(Path(deepspeed).read_text("utf-8")) if isinstance(deepspeed, str) else deepspeed
            values["deepspeed"] = {**settings, "checkpoint": {"load_universal": True}}
    # YAML reads a bare `no` as false
    values = {key: "no" if key.endswith("_strategy") and value is False else value for key, value in values.items()}
    try:
        return TrainingArguments(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}; see transformers.TrainingArguments") from error
