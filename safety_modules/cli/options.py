"""Options that several commands have, and the checks of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from safety_modules.devices import DTYPES


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number from `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least}")
        return int(text)

    return read


def fraction(text: str) -> float:
    """A number above 0 and below 1."""
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} must be a fraction, above 0 and below 1")


def file(text: str) -> Path:
    """The path of a file that exists."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file; check the path")
    return Path(text)


def add_rows(parser: argparse.ArgumentParser) -> None:
    """--recipe, --root and --split: labelled rows."""
    parser.add_argument("--recipe", required=True, help="recipe of data_recipes that reads the data, such as custom")
    parser.add_argument("--root", required=True, help="folder or table of the data, or hf://datasets/owner/name")
    parser.add_argument("--split", default="validation", help="with rows in the proportions of use (%(default)s)")


def add_policy(parser: argparse.ArgumentParser) -> None:
    """--policy."""
    parser.add_argument("--policy", type=file, help="policy file (default: the model folder's own, or threshold 0.5)")


def add_compute(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """--batch-size, --device and --dtype."""
    parser.add_argument("--batch-size", type=whole(1), default=batch_size, help="rows in one batch (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps; auto: a GPU if there is one (%(default)s)")
    text = "of the model's weights; auto: as stored, and on a CPU bfloat16 in place of float16 (%(default)s)"
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help=text)


def device_and_dtype(options: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """Where a model runs, and the dtype of its weights; "auto" is resolved.

    Args: folder: of the model, or the hub name of a stock model.
    """
    from safety_modules.checkpoints.load import resolve_compute

    device, dtype = resolve_compute(folder, options.device, options.dtype)
    return device, str(dtype)
