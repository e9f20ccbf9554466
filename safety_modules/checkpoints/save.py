"""Save: a SafeVLM's trained modules -> the `safety/` of a folder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from safety_modules.checkpoints.format import SafetyMeta, write_safety
from safety_modules.model.quantization import Quantization
from safety_modules.model.safe_vlm import SafeVLM


def save_safety(model: SafeVLM, folder: Path, base: str, state: dict[str, Tensor] | None = None) -> None:
    """Write `folder/safety/`: config, with the base's quantisation where it is quantised, taxonomy and weights.

    Args:
        base: where the base model is, a folder or a hub name; "." for the same folder.
        state: the modules' weights, where the model holds only a part of each; its own by default.
    """
    quantization = Quantization.of(model.base)
    meta = SafetyMeta(
        base=base,
        model_type=model.config.model_type,
        vision_width=model.backbone.vision_width(model.config),
        language_width=model.backbone.language_width(model.config),
        safety=model.safety_config,
        quantization=quantization.to_dict() if quantization else None,
    )
    write_safety(folder, meta, model.taxonomy, model.safety.state_dict() if state is None else state)
