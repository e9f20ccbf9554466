"""Calibrate: a trained folder and held-out rows -> a calibration, and how far the probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from safety_modules.checkpoints.load import load
from safety_modules.decision.calibration import Calibration
from safety_modules.evaluation.metrics import Bin, auroc, brier, ece, reliability
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.pipeline import ASSESS
from safety_modules.prompt.images import ImageError
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import Taxonomy


class Logits(NamedTuple):
    """Head outputs and labels of labelled rows: (B, types), (B, levels), (B,), (B,)."""

    types: Tensor
    levels: Tensor
    risk_type: Tensor
    risk_level: Tensor


@torch.no_grad()
def logits(model: SafeVLM, samples: Sequence[Sample], batch_size: int = 64) -> Logits:
    """Run the head over samples; no language-model forward.

    Raises:
        DataError: an image cannot be read; names the rows.
    """
    types, levels = [], []
    for start in tqdm(range(0, len(samples), batch_size), desc="assess", leave=False):
        part = samples[start : start + batch_size]
        try:
            rows = [model.processor.encode(sample.messages(), row=sample.source) for sample in part]
        except ImageError as error:
            raise DataError(f"{part[0].source} to {part[-1].source}: {error}") from error
        batch = model.processor.collate(rows)
        scores = model.assess(**{name: batch[name].to(model.device) for name in ASSESS if name in batch})
        types.append(scores.type_logits.float().cpu())
        levels.append(scores.level_logits.float().cpu())
    return Logits(torch.cat(types), torch.cat(levels), *labels(samples, model.taxonomy))


def labels(samples: Sequence[Sample], taxonomy: Taxonomy) -> tuple[Tensor, Tensor]:
    """risk_type and risk_level as class indices, (B,) each."""
    types = torch.tensor([taxonomy.type_index(sample.risk_type) for sample in samples])
    return types, torch.tensor([sample.risk_level for sample in samples])


class Fitted(NamedTuple):
    """A calibration, the numbers before and after it on the rows that it was fitted on, and the reliability bins by title."""

    calibration: Calibration
    numbers: dict[str, dict[str, float]]
    bins: dict[str, list[Bin]]


def fit(folder: str | Path, samples: Sequence[Sample], device: str = "cpu") -> Fitted:
    """Calibrate a trained or exported folder on held-out rows; nothing is written, see `checkpoint.save_calibration`.

    Args:
        samples: rows that it was not trained on, clean and risky, in the proportions of use.
    """
    model = load(folder).to(device).eval()
    found, clean = logits(model, samples), model.taxonomy.clean_index
    calibration = Calibration.fit(*found, model.taxonomy)
    before, bins = quality(found, clean, Calibration(), "before calibration")
    after, more = quality(found, clean, calibration, "after calibration")
    return Fitted(calibration, {"before": before, "after": after}, {**bins, **more})


def quality(
    found: Logits, clean: int, calibration: Calibration, title: str
) -> tuple[dict[str, float], dict[str, list[Bin]]]:
    """ECE and Brier score of both outputs, AUROC of risky against clean exchanges; and the reliability bins.

    Args:
        clean: index of the clean type.
        title: of the bins, after the output's name.
    """
    numbers, bins = {}, {}
    outputs = (
        ("type", found.types / calibration.type_temperature, found.risk_type),
        ("level", found.levels / calibration.level_temperature, found.risk_level),
    )
    for name, values, truth in outputs:
        probabilities = torch.softmax(values.double(), -1).numpy()
        right = probabilities.argmax(-1) == truth.numpy()
        title_bins = reliability(probabilities.max(-1), right)
        bins[f"Risk {name}, {title}"] = title_bins
        numbers |= {f"ece_{name}": ece(title_bins), f"brier_{name}": brier(probabilities, truth.numpy())}
    risk = -torch.log_softmax(found.types.double(), -1)[:, clean]  # its ranks do not depend on the temperature
    return {**numbers, "auroc": auroc(risk.numpy(), (found.risk_level > 0).numpy())}, bins
