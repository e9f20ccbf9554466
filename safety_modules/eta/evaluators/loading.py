"""Loading: a stock model of transformers for an evaluator, whole and safely, or an error that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from safety_modules.devices import DTYPES
from safety_modules.eta.evaluators.protocols import EtaError


def load_stock(kind: Any, folder: str | Path, device: str, dtype: torch.dtype | str) -> Any:
    """A model of transformers with all its weights from the files; safetensors only, no remote code.

    Args:
        kind: a class of transformers with `from_pretrained`.
        folder: a folder, or a hub name.
        dtype: a torch dtype, the name of one, or "auto" for what the model's config says.

    Raises:
        EtaError: it cannot be read, or the files lack weights, which transformers would fill with random numbers.
    """
    if isinstance(dtype, str) and dtype not in ("auto", *DTYPES):
        raise EtaError(f"dtype: {dtype!r}; valid names: auto, {', '.join(DTYPES)}")
    settings = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    with readable(folder):
        model, info = kind.from_pretrained(folder, dtype=dtype, **settings)
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise EtaError(
            f"{folder}: its files lack {len(lacking)} weights of {type(model).__name__}, {', '.join(lacking[:3])}; "
            "they would be random: give a folder that was saved from such a model"
        )
    return model.eval().to(device)


@contextmanager
def readable(folder: str | Path) -> Iterator[None]:
    """Turn what fails while a folder is read into an EtaError that names the folder."""
    try:
        yield
    except EtaError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        raise EtaError(
            f"{folder}: cannot be loaded ({lines[0] if lines else type(error).__name__}); give the folder or hub name "
            "of a model of the right kind in safetensors; convert .bin files with transformers' save_pretrained"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
