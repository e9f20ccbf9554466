"""Whole weights of a model that DeepSpeed's ZeRO has sharded, and DeepSpeed checkpoints without the frozen ones."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback


def gather_weights(model: nn.Module, names: Collection[str], deepspeed: bool, keep: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers by name, whole and on the CPU; every process must call it.

    Under ZeRO a trained parameter comes from the optimizer's 32-bit copy, and a frozen one is collected from its
    shards, one at a time.

    Args:
        deepspeed: whether the model is trained by DeepSpeed.
        keep: False returns nothing: for a process that only takes part.
    """
    weights = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name in names:
            whole = _whole(value) if deepspeed else value
            if keep:
                weights[name] = whole.detach().cpu().contiguous().clone()
    return weights


def _whole(value: Tensor) -> Tensor:
    import deepspeed.utils

    if value.requires_grad and (copy := deepspeed.utils.safe_get_full_fp32_param(value)) is not None:
        return copy
    with deepspeed.zero.GatheredParameters([value]):  # does nothing where the value is not sharded
        return value.detach().cpu().clone()


class SkipFrozenWeights(TrainerCallback):
    """DeepSpeed's checkpoints without the frozen parameters: those are the base's, which stays where it is.

    Trainer asks DeepSpeed for this itself, but only where the model's class is PEFT's.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: object, **__: object) -> None:
        """From now on `model_wrapped` is DeepSpeed's engine."""
        engine = self.trainer.model_wrapped
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
