"""Weights: a model's whole parameters, wherever DeepSpeed has put their parts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps

from accelerate import Accelerator
from torch import Tensor, nn


def gather_weights(model: nn.Module, names: Collection[str], keep: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers by name, whole and on the CPU; every process must call it.

    Under ZeRO what is trained comes from the optimizer's 32-bit copy, and what is frozen is collected from its shards, one
    parameter at a time.

    Args: keep: False gives nothing: for a process that only takes part.
    """
    found = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name in names:
            whole = _whole(value)
            if keep:
                found[name] = whole.detach().cpu().contiguous().clone()
    return found


def _whole(value: Tensor) -> Tensor:
    if hasattr(value, "_hp_mapping") or (hasattr(value, "ds_id") and value.requires_grad):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(value)
    if hasattr(value, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().cpu().clone()
    return value


def skip_frozen_weights(accelerator: Accelerator) -> None:
    """Have DeepSpeed's engines write no frozen parameters, and expect none: they are the base's, which stays where it is."""
    prepare = accelerator.prepare

    @wraps(prepare)
    def prepared(*parts: object, **options: object) -> object:
        result = prepare(*parts, **options)
        for engine in result if isinstance(result, tuple) else (result,):
            if hasattr(engine, "save_checkpoint") and hasattr(engine, "load_checkpoint"):
                engine.save_checkpoint = _with(engine.save_checkpoint, exclude_frozen_parameters=True)
                engine.load_checkpoint = _with(engine.load_checkpoint, load_module_strict=False)
        return result

    accelerator.prepare = prepared


def _with(method: Callable, **fixed: object) -> Callable:
    """A method some of whose arguments are fixed, whatever it is called with."""

    @wraps(method)
    def fixed_method(*args: object, **options: object) -> object:
        return method(*args, **{**options, **fixed})

    return fixed_method
