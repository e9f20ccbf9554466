"""The format of a checkpoint folder: `safety/` with config, taxonomy and weights. Safetensors only, strict, no model here.

A folder holds `safety/`, and either a whole base model beside it (an export) or nothing of the base, which is then where
`safety/config.json` says, and perhaps `adapter/`, LoRA weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safety_modules.config import SafetyConfig
from safety_modules.errors import UserError
from safety_modules.taxonomy import Taxonomy

FORMAT = 1
SAFETY, ADAPTER = "safety", "adapter"
WEIGHTS, CONFIG, TAXONOMY = "model.safetensors", "config.json", "taxonomy.yaml"


class CheckpointError(UserError):
    """A checkpoint folder lacks a file or does not fit; the message names it and the remedy."""


@dataclass(frozen=True)
class SafetyMeta:
    """What `safety/config.json` says.

    Attributes:
        base: where the base model is, a folder or a hub name; "." for the same folder.
        model_type: the base's family, a key of `backbones.BACKBONES`.
        vision_width: V. language_width: D.
        safety: shape of the modules.
        quantization: how the base was held in training, as `Quantization.to_dict` gives it; None: whole.
    """

    base: str
    model_type: str
    vision_width: int
    language_width: int
    safety: SafetyConfig
    quantization: dict | None = None

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        plain = {"format": FORMAT, **vars(self), "safety": self.safety.to_dict()}
        return {name: value for name, value in plain.items() if name != "quantization" or value is not None}


def write_safety(folder: Path, meta: SafetyMeta, taxonomy: Taxonomy, state: dict[str, Tensor]) -> None:
    """Write `folder/safety/`: config, taxonomy and weights."""
    target = folder / SAFETY
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG).write_text(json.dumps(meta.to_dict(), indent=2) + "\n", encoding="utf-8")
    (target / TAXONOMY).write_text(taxonomy.to_yaml(), encoding="utf-8")
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, target / WEIGHTS)


def read_meta(folder: str | Path) -> SafetyMeta:
    """What the folder's config says.

    Raises:
        CheckpointError: a file is missing, or is of another format.
    """
    folder = Path(folder)
    for name in (CONFIG, TAXONOMY, WEIGHTS):
        if not (folder / SAFETY / name).is_file():
            raise CheckpointError(
                f"{folder}: no file {SAFETY}/{name}; give the folder that training or export wrote (it has a {SAFETY}/ in it)"
            )
    path = folder / SAFETY / CONFIG
    data = read_json(path)
    names = ("base", "model_type", "vision_width", "language_width", "safety")
    if missing := [name for name in names if name not in data]:
        raise CheckpointError(f"{path}: has no {missing[0]!r}; use a folder as training or export wrote it")
    values = {name: data[name] for name in names} | {"safety": SafetyConfig.from_dict(data["safety"])}
    return SafetyMeta(**values, quantization=data.get("quantization"))


def read_taxonomy(folder: str | Path) -> Taxonomy:
    """The categories of a folder."""
    read_meta(folder)  # complains of what is no such folder
    return Taxonomy.from_yaml(Path(folder) / SAFETY / TAXONOMY)


def head_digest(folder: str | Path) -> str:
    """A hash of all weights that a verdict depends on: the modules' without the language model's tokens."""
    digest = hashlib.sha256()
    for name, value in sorted(load_file(Path(folder) / SAFETY / WEIGHTS).items()):
        if not name.startswith("llm_tokens."):
            digest.update(name.encode() + value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    """A JSON file of this format; another format, or none, is a CheckpointError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); write it again") from error
    number = data.get("format") if isinstance(data, dict) else None
    if number != FORMAT:
        raise CheckpointError(f"{path}: format {number!r}, but this version reads {FORMAT}; use the one that wrote it")
    return data
