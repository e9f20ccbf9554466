"""Devices and dtypes by name, as commands and configuration files give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safety_modules.config import ConfigError
from safety_modules.errors import nearest

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def check_dtype(dtype: torch.dtype | str, setting: str = "dtype") -> None:
    """Check the name of a dtype, or "auto" for the one that the model's files name.

    Args:
        setting: where the name was given, for the message.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(dtype, str) and dtype not in ("auto", *DTYPES):
        raise ConfigError(f"{setting} {dtype!r}: unknown dtype; {nearest(dtype, ['auto', *DTYPES])}")


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def resolve_device(name: str = "auto") -> str:
    """The device that a name stands for; "auto": the GPU where there is one, else the CPU.

    Raises:
        ConfigError: torch does not know such a device, or the machine has none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"device {name!r}: cannot be used ({reason}); use auto, or cpu") from error
    return name


def resolve_dtype(name: str, device: str, stored: str | None) -> str:
    """The dtype to hold a model's weights in.

    Args:
        name: one of DTYPES, or "auto".
        device: of the model.
        stored: the dtype that the model's files name, or None.

    Returns:
        `name`. For "auto" `stored`, but on a CPU bfloat16 in place of float16, which is six times slower there.
    """
    check_dtype(name)
    if name != "auto":
        return name
    return "bfloat16" if stored == "float16" and device == "cpu" else stored or "float32"
