"""Save: a SafeVLM's trained modules -> the `safety/` of a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from safety_modules.checkpoints.format import SafetyMeta, write_safety
from safety_modules.model.quantization import Quantization
from safety_modules.model.safe_vlm import SafeVLM


def save_safety(model: SafeVLM, folder: Path, base: str, state: dict[str, Tensor] | None = None) -> None:
    """Write `folder/safety/`: config, taxonomy and weights.

    Args:
        base: where the base model is, a folder or a hub name; "." for the same folder.
        state: the modules' weights, where the model holds only a part of each; its own by default.
    """
    quantization = Quantization.of(model.base)
    held = asdict(quantization) if quantization else None
    meta = SafetyMeta(base, model.config.model_type, *model.widths, model.safety_config, held)
    write_safety(folder, meta, model.taxonomy, model.safety.state_dict() if state is None else state)
