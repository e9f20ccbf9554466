"""Devices and dtypes by name, as commands and configuration files give them."""

from __future__ import annotations

from safety_modules.config import ConfigError
from safety_modules.taxonomy import nearest

DTYPES = ("float32", "bfloat16", "float16")


def check_dtype(name: str, setting: str) -> str:
    """A dtype's name, or "auto" for the one that the model's files name.

    Raises:
        ConfigError: it is neither. Args: setting: where the name was given, for the message.
    """
    if name not in ("auto", *DTYPES):
        raise ConfigError(f"{setting} {name!r}: {nearest(name, ['auto', *DTYPES])}")
    return name


def resolve_device(name: str = "auto") -> str:
    """The device that a name stands for; "auto": the GPU where there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, or the machine has none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"--device {name!r}: cannot be used ({reason}); use auto, cpu, or cuda where there is a GPU"
        ) from error
    return name


def resolve_dtype(name: str, device: str, stored: str | None) -> str:
    """The dtype that a model's weights are held in.

    Args:
        name: one of DTYPES, or "auto".
        device: of the model.
        stored: the dtype that the model's files name, or None.

    Returns:
        The named one. For "auto" the stored one, but on a CPU bfloat16 in place of float16, which is six times slower there.
    """
    check_dtype(name, "dtype")
    if name != "auto":
        return name
    return "bfloat16" if stored == "float16" and device == "cpu" else stored or "float32"
