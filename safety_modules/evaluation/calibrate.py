"""Calibrate: a trained folder and held-out rows -> a calibration, and the quality of the probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from safety_modules.checkpoints.load import load
from safety_modules.decision.calibration import Calibration
from safety_modules.evaluation.metrics import Bin, auroc, probability_quality
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.pipeline import ASSESS
from safety_modules.prompt.images import ImageError
from safety_modules.sample import DataError, Sample


class Logits(NamedTuple):
    """Head outputs and labels of rows: (B, types), (B, levels), (B,), (B,)."""

    types: Tensor
    levels: Tensor
    risk_type: Tensor
    risk_level: Tensor


@torch.no_grad()
def logits(model: SafeVLM, samples: Sequence[Sample], batch_size: int = 64) -> Logits:
    """Run the head over samples; the language model is not run.

    Raises:
        DataError: an image cannot be read; names the rows.
    """
    types, levels = [], []
    for start in tqdm(range(0, len(samples), batch_size), desc="assess", leave=False):
        rows = samples[start : start + batch_size]
        try:
            encoded = [model.processor.encode(sample.messages(), row=sample.source) for sample in rows]
        except ImageError as error:
            raise DataError(f"{rows[0].source} to {rows[-1].source}: {error}") from error
        batch = model.processor.collate(encoded)
        scores = model.assess(**{name: batch[name].to(model.device) for name in ASSESS if name in batch})
        types.append(scores.type_logits.float().cpu())
        levels.append(scores.level_logits.float().cpu())
    risk_type = torch.tensor([model.taxonomy.type_index(sample.risk_type) for sample in samples])
    risk_level = torch.tensor([sample.risk_level for sample in samples])
    return Logits(torch.cat(types), torch.cat(levels), risk_type, risk_level)


class Fitted(NamedTuple):
    """A calibration, the numbers before and after it on the rows it was fitted on, and reliability bins by title."""

    calibration: Calibration
    numbers: dict[str, dict[str, float]]
    bins: dict[str, list[Bin]]


def fit(
    folder: str | Path, samples: Sequence[Sample], device: str = "cpu", dtype: str = "auto", batch_size: int = 64
) -> Fitted:
    """Calibrate a trained or exported folder on held-out rows; nothing is written (see `save_calibration`).

    Args:
        samples: rows that it was not trained on, clean and risky, in the proportions of use.
    """
    model = load(folder, dtype=dtype, language_model=False).to(device).eval()
    rows, clean = logits(model, samples, batch_size), model.taxonomy.clean_index
    calibration = Calibration.fit(*rows, model.taxonomy)
    before, bins_before = quality(rows, clean, Calibration(), "before calibration")
    after, bins_after = quality(rows, clean, calibration, "after calibration")
    return Fitted(calibration, {"before": before, "after": after}, {**bins_before, **bins_after})


def quality(
    rows: Logits, clean: int, calibration: Calibration, title: str
) -> tuple[dict[str, float], dict[str, list[Bin]]]:
    """ECE and Brier score of both outputs, AUROC of risky against clean exchanges; and the reliability bins.

    Args:
        clean: index of the clean type.
        title: of the bins, after the output's name.
    """
    numbers: dict[str, float] = {}
    bins: dict[str, list[Bin]] = {}
    outputs = (
        ("type", rows.types / calibration.type_temperature, rows.risk_type),
        ("level", rows.levels / calibration.level_temperature, rows.risk_level),
    )
    for name, values, labels in outputs:
        probabilities = torch.softmax(values.double(), -1).numpy()
        scores, bins[f"Risk {name}, {title}"] = probability_quality(name, probabilities, labels.numpy())
        numbers |= scores
    risk = -torch.log_softmax(rows.types.double(), -1)[:, clean]  # its ranks do not depend on the temperature
    return {**numbers, "auroc": auroc(risk.numpy(), (rows.risk_level > 0).numpy())}, bins
