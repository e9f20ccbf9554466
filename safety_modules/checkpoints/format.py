"""The format of a checkpoint folder: `safety/` with config, taxonomy and weights. Safetensors only; no model here.

A folder holds `safety/` and, beside it, either a whole base model (an export) or nothing of the base, whose place is
then in `safety/config.json`; and perhaps `adapter/`, LoRA weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safety_modules.config import SafetyConfig
from safety_modules.config_reader import parse
from safety_modules.errors import UserError
from safety_modules.files import write_text
from safety_modules.taxonomy import Taxonomy

FORMAT = 1
SAFETY, ADAPTER = "safety", "adapter"
WEIGHTS, CONFIG, TAXONOMY = "model.safetensors", "config.json", "taxonomy.yaml"


class CheckpointError(UserError):
    """A checkpoint folder lacks a file or does not fit; the message names it and the remedy."""


@dataclass(frozen=True)
class SafetyMeta:
    """The content of `safety/config.json`.

    Attributes:
        base: where the base model is, a folder or a hub name; "." for the same folder.
        model_type: the base's family, a key of `backbones.BACKBONES`.
        vision_width: V. language_width: D.
        safety: shape of the modules.
        quantization: of the base in training, the fields of a `Quantization`; None: not quantised.
    """

    base: str
    model_type: str
    vision_width: int
    language_width: int
    safety: SafetyConfig
    quantization: dict | None = None


def write_safety(folder: Path, meta: SafetyMeta, taxonomy: Taxonomy, state: dict[str, Tensor]) -> None:
    """Write `folder/safety/`: config, taxonomy and weights."""
    target = folder / SAFETY
    values = {name: value for name, value in asdict(meta).items() if value is not None}
    write_text(target / CONFIG, json.dumps({"format": FORMAT, **values}, indent=2) + "\n")
    write_text(target / TAXONOMY, taxonomy.to_yaml())
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, target / WEIGHTS)


def read_meta(folder: str | Path) -> SafetyMeta:
    """The config of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, or has another format.
        ConfigError: a value is missing or breaks a rule.
    """
    folder = Path(folder)
    for name in (CONFIG, TAXONOMY, WEIGHTS):
        if not (folder / SAFETY / name).is_file():
            raise CheckpointError(
                f"{folder}: no file {SAFETY}/{name}; give the folder that training or export wrote (it has a {SAFETY}/)"
            )
    path = folder / SAFETY / CONFIG
    return parse(SafetyMeta, read_json(path), str(path))


def read_taxonomy(folder: str | Path) -> Taxonomy:
    """The categories of a checkpoint folder; raises as `read_meta`."""
    read_meta(folder)
    return Taxonomy.from_yaml(Path(folder) / SAFETY / TAXONOMY)


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The modules' weights; a damaged file is a CheckpointError."""
    path = Path(folder) / SAFETY / WEIGHTS
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); save it again") from error


def head_digest(folder: str | Path) -> str:
    """SHA-256 of all weights that a verdict depends on: the modules' without the language model's tokens."""
    digest = hashlib.sha256()
    for name, value in sorted(read_weights(folder).items()):
        if not name.startswith("llm_tokens."):
            digest.update(name.encode() + value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    """A JSON file of this format, without its format number.

    Raises:
        CheckpointError: it is not JSON, or has another format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); write it again") from error
    number = data.pop("format", None) if isinstance(data, dict) else None
    if number != FORMAT:
        raise CheckpointError(f"{path}: format {number!r}, but this version reads {FORMAT}; use the one that wrote it")
    return data
