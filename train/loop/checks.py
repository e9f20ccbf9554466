"""Checks of a stage's settings: those that would train something else than they say are errors."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from safety_modules.config import ConfigError
from safety_modules.devices import check_dtype
from train.config import TrainConfig
from train.loop.trainer import SafetyTrainer


def check_settings(config: TrainConfig, arguments: TrainingArguments) -> None:
    """Check what can be checked before anything is loaded; a ConfigError states value, rule and remedy."""
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"one process and {arguments.n_gpu} GPUs: run torchrun --nproc_per_node {arguments.n_gpu} -m train.run ... "
            "or set CUDA_VISIBLE_DEVICES to one of them"
        )
    if config.trainer.get("gradient_checkpointing_kwargs", {}).get("use_reentrant"):
        raise ConfigError(
            "trainer.gradient_checkpointing_kwargs: use_reentrant needs gradients from a frozen tower; remove it"
        )
    check_dtype(config.dtype or "auto", "dtype")
    if not arguments.deepspeed:
        return
    if "optimizer" in arguments.hf_deepspeed_config.config:
        raise ConfigError(
            f"trainer.deepspeed: {arguments.deepspeed} has an optimizer, which would ignore the rules' learning rates; "
            "remove its `optimizer`, and choose one by trainer.optim"
        )
    if config.data.features and arguments.hf_deepspeed_config.is_zero3():
        raise ConfigError(
            f"data.features: {config.data.features}: under ZeRO-3 no process has the vision tower's whole weights; use "
            "ZeRO-2, or set data.features to null"
        )


def check_rules(config: TrainConfig, trained: set[str]) -> None:
    """Check that the rules train only what this stage can; a ConfigError states value, rule and remedy.

    Args: trained: names of the parameters that the rules train.
    """
    freeze = "freeze it with null in the rules, above the rule that trains it"
    tower = sorted(name for name in trained if "vision_tower" in name)
    if tower and config.data.features:
        raise ConfigError(
            f"data.features: {config.data.features} holds features of a frozen tower, but {tower[0]!r} is trained; "
            "freeze it with null in the rules, or set data.features to null"
        )
    unused = sorted(name for name in trained if not name.startswith("safety.") or name.startswith("safety.llm_tokens."))
    if config.head_only and unused:
        raise ConfigError(f"head_only: the language model is not run, so {unused[0]!r} cannot be trained; {freeze}")
    not_saved = sorted(name for name in trained if name.startswith("base.") and "lora_" not in name)
    if config.lora and not_saved:
        raise ConfigError(
            f"lora: the rules also train {not_saved[0]!r}, which would not be saved; {freeze}, or train without lora"
        )


def check_precision(trainer: SafetyTrainer) -> None:
    """Check that no 16-bit weights are trained without a 32-bit copy of them; else a ConfigError."""
    half = [
        name
        for name, parameter in trainer.model.named_parameters()
        if name in trainer.trained and parameter.dtype in (torch.bfloat16, torch.float16)
    ]
    if half and not trainer.is_deepspeed_enabled:
        raise ConfigError(
            f"dtype: {half[0]} would be trained in 16 bits, where small changes are rounded away; set dtype to "
            "float32 (trainer.bf16 still computes in 16 bits), or use trainer.deepspeed, which keeps 32-bit copies"
        )
