"""Liger kernels: fused RMSNorm, RoPE and SwiGLU in the base's language model, where liger-kernel is installed."""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel, TrainingArguments

from safety_modules.config import ConfigError
from safety_modules.taxonomy import nearest
from train.config import TrainConfig

KERNELS = ("rope", "rms_norm", "swiglu")
LOSSES = ("cross_entropy", "fused_linear_cross_entropy")  # not used: logits are computed only where labels are


def check_liger(config: TrainConfig, arguments: TrainingArguments) -> None:
    """Check, before anything is loaded, that `trainer.use_liger_kernel` can be used; else a ConfigError."""
    if not config.trainer.get("use_liger_kernel"):
        return
    if config.head_only:
        raise ConfigError("trainer.use_liger_kernel with head_only: the language model is not run; remove one of them")
    for name in arguments.liger_kernel_config or {}:
        if name not in KERNELS:
            raise ConfigError(
                f"trainer.liger_kernel_config: {name!r} is not applied here; {nearest(name, list(KERNELS))}"
            )
    if arguments.device.type == "cpu":
        raise ConfigError(
            "trainer.use_liger_kernel: Liger's kernels need a GPU and this run is on a CPU; set it to false"
        )
    try:
        import liger_kernel.transformers  # noqa: F401 - optional
    except ImportError as error:
        raise ConfigError(
            f"trainer.use_liger_kernel needs liger-kernel, which cannot be imported ({error}); pip install liger-kernel"
        ) from error


def apply_liger(base: PreTrainedModel, chosen: dict[str, bool] | None = None) -> None:
    """Put Liger's kernels into the language model in place; the vision tower and the safety modules stay as they are.

    Liger also replaces them in the module of transformers that the language model comes from: later models of this
    process have them too.

    Args: chosen: kernel -> whether it is used, as `trainer.liger_kernel_config`; those not named are.

    Raises:
        ConfigError: Liger has no such kernels for this language model.
    """
    from liger_kernel import transformers as liger

    model_type = base.config.get_text_config().model_type
    try:
        patch = getattr(liger, f"apply_liger_kernel_to_{model_type}")
    except AttributeError:
        patch = None
    if patch is None or not {*KERNELS, *LOSSES, "model"} <= set(inspect.signature(patch).parameters):
        raise ConfigError(
            f"trainer.use_liger_kernel: liger-kernel has no {', '.join(KERNELS)} for a language model of type "
            f"{model_type!r}; set it to false"
        )
    options = {**dict.fromkeys(KERNELS, True), **dict.fromkeys(LOSSES, False), **(chosen or {})}
    patch(model=base.model.language_model, **options)
