"""What the training of riskworld's small models has in common: the optimizer, and folders that are built once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from safety_modules.build_stamp import digest, read_stamp, write_stamp
from safety_modules.files import fresh_folder

logger = logging.getLogger(__name__)

MEASURED = "measured.json"
LOG_EVERY = 100  # steps


def build_optimizer_step(
    name: str,
    parameters: Iterable[nn.Parameter] | list[dict],
    lr: float,
    steps: int,
    warmup: int | None = None,
    weight_decay: float = 0.05,
) -> Callable[[Tensor], None]:
    """A function that takes a step of AdamW on a loss: warm-up to `lr`, then cosine, with clipped gradients.

    Args:
        name: for the log, which has the running mean of the losses.
        parameters: or parameter groups.
        warmup: steps; None for a twentieth of `steps`.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20 if warmup is None else warmup, steps)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    count, mean = 0, 0.0

    def step(loss: Tensor) -> None:
        nonlocal count, mean
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        count += 1
        mean += max(1 / count, 0.03) * (loss.item() - mean)
        if count % LOG_EVERY == 0:
            logger.info("%s: step %d of %d, loss %.3f", name, count, steps, mean)

    return step


def build_once(output: Path, base: Path, build: Callable[[Path], dict], **made_from: int) -> dict:
    """The figures of a model; it is built unless its folder is there and was built from the same base and arguments.

    Args:
        output: folder of the model; it appears whole or not at all.
        build: writes the model into the folder that it is given, and returns its figures.
    """
    stamp = {"base": digest(base / "model.safetensors"), **made_from}
    measured = read_stamp(output / MEASURED)
    if measured is not None and measured.get("stamp") == stamp:
        return measured["figures"]
    with fresh_folder(output) as folder:
        figures = build(folder)
        write_stamp(folder / MEASURED, {"stamp": stamp, "figures": figures})
    logger.info("%s: %s", output, figures)
    return figures
