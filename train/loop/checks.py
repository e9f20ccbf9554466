"""Refusals: settings that would train something else than they say."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from safety_modules.config import ConfigError
from safety_modules.taxonomy import nearest
from train.config import TrainConfig
from train.loop.trainer import SafetyTrainer

DTYPES = ("float32", "bfloat16", "float16")


def check_settings(config: TrainConfig, arguments: TrainingArguments) -> None:
    """Stop before anything is loaded where a setting would train something else than it says.

    Raises:
        ConfigError: value, rule and remedy.
    """
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"one process and {arguments.n_gpu} GPUs: start with torchrun --nproc_per_node {arguments.n_gpu} -m train.run ..., "
            "or set CUDA_VISIBLE_DEVICES to one of them"
        )
    if config.trainer.get("gradient_checkpointing_kwargs", {}).get("use_reentrant"):
        raise ConfigError(
            "trainer.gradient_checkpointing_kwargs: use_reentrant needs gradients through the frozen vision tower; leave it out"
        )
    if arguments.deepspeed and "optimizer" in arguments.hf_deepspeed_config.config:
        raise ConfigError(
            f"trainer.deepspeed: {arguments.deepspeed} has an optimizer, which would ignore the rules' learning rates; "
            "remove its `optimizer`, and choose one by trainer.optim"
        )
    if config.dtype not in (None, "auto", *DTYPES):
        raise ConfigError(f"dtype: {config.dtype!r}; {nearest(config.dtype, list(DTYPES))}")
    if arguments.deepspeed and config.data.features and arguments.hf_deepspeed_config.is_zero3():
        raise ConfigError(
            f"data.features: {config.data.features}: under ZeRO-3 no process has the vision tower's whole weights; use ZeRO-2, "
            "or set data.features to null"
        )


def check_rules(config: TrainConfig, trained: set[str]) -> None:
    """Stop before the first step where the rules train what this stage cannot.

    Args: trained: names of the parameters that the rules train.

    Raises:
        ConfigError: value, rule and remedy.
    """
    _check_tower(trained, config.data.features)
    if config.head_only:
        _check_head_only(trained)
    if config.lora:
        _check_lora(trained)


def check_precision(trainer: SafetyTrainer) -> None:
    """Refuse to train weights of 16 bits without a 32-bit copy of them."""
    short = [
        n
        for n, p in trainer.model.named_parameters()
        if n in trainer.trained and p.dtype in (torch.bfloat16, torch.float16)
    ]
    if short and not trainer.is_deepspeed_enabled:
        raise ConfigError(
            f"dtype: {short[0]} would be trained in 16 bits, where small changes are rounded away; set dtype to float32 (with "
            "trainer.bf16 it still computes in 16 bits), or train with trainer.deepspeed, which keeps 32-bit copies"
        )


def _check_tower(trained: set[str], features: str | None) -> None:
    """Refuse to train what stored features were made with."""
    moved = sorted(name for name in trained if "vision_tower" in name)
    if moved and features:
        raise ConfigError(
            f"data.features: {features} holds what the vision tower makes of images, but {moved[0]!r} is trained; freeze it "
            "with null in the rules, or set data.features to null"
        )


def _check_head_only(trained: set[str]) -> None:
    """Refuse a guard stage that would train what it does not run."""
    idle = sorted(name for name in trained if not name.startswith("safety.") or name.startswith("safety.llm_tokens."))
    if idle:
        raise ConfigError(
            f"head_only: the language model is not run, so {idle[0]!r} cannot be trained; freeze it with null in the rules, above "
            "the rule that trains it"
        )


def _check_lora(trained: set[str]) -> None:
    """Refuse a stage with adapters that trains weights of the base too: `final/` holds the adapters alone."""
    lost = sorted(name for name in trained if name.startswith("base.") and "lora_" not in name)
    if lost:
        raise ConfigError(
            f"lora: the rules also train {lost[0]!r}, which would not be saved; freeze it with null in the rules, above the rule "
            "that trains it, or train without lora"
        )
