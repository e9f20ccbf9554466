"""Checkpoint: the folder that holds trained safety modules. Safetensors only, strict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, PreTrainedModel

from safety_modules.config import SafetyConfig
from safety_modules.errors import UserError
from safety_modules.modeling import SafeVLM, load_base
from safety_modules.processing import SafeProcessor
from safety_modules.taxonomy import Taxonomy, TaxonomyError

FORMAT = 1
SAFETY, ADAPTER = "safety", "adapter"
WEIGHTS, CONFIG, TAXONOMY = "model.safetensors", "config.json", "taxonomy.yaml"


class CheckpointError(UserError):
    """A checkpoint folder lacks a file or does not fit; the message names it and the remedy."""


@contextmanager
def fresh_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: written beside its place, then renamed into it."""
    folder = Path(folder)
    work = folder.with_name(folder.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file, whole or not at all; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(path.name + ".partial")
    work.write_text(text, encoding="utf-8")
    work.replace(path)


def save_safety(model: SafeVLM, folder: Path, base: str) -> None:
    """Write `folder/safety/`: config, taxonomy and weights.

    Args:
        base: where the base model is, a folder or a hub name; "." for the same folder.
    """
    target = folder / SAFETY
    target.mkdir(parents=True, exist_ok=True)
    meta = {
        "format": FORMAT,
        "base": base,
        "model_type": model.config.model_type,
        "vision_width": model.backbone.vision_width(model.config),
        "language_width": model.backbone.language_width(model.config),
        "safety": model.safety_config.to_dict(),
    }
    (target / CONFIG).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    (target / TAXONOMY).write_text(model.taxonomy.to_yaml(), encoding="utf-8")
    save_file({k: v.detach().cpu().contiguous() for k, v in model.safety.state_dict().items()}, target / WEIGHTS)


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    base: str | Path | None = None,
    merge: bool = True,
    taxonomy: Taxonomy | None = None,
) -> SafeVLM:
    """Load a folder that training or export wrote.

    Args:
        folder: holds `safety/`, and either a whole base model (an export) or nothing of it (the base is then taken from
            where `safety/config.json` says) and perhaps `adapter/`, the LoRA weights.
        dtype: of the base's weights. The modules are fp32.
        base: another place of the base model, where it has moved.
        merge: merge the LoRA weights into the base.
        taxonomy: refuse the folder if its taxonomy is another one.

    Raises:
        CheckpointError: a file is missing or damaged, or the base does not fit.
        TaxonomyError: the taxonomy is another one; both are printed.
    """
    folder = Path(folder)
    meta = _meta(folder)
    own = Taxonomy.from_yaml(folder / SAFETY / TAXONOMY)
    if taxonomy is not None and taxonomy.to_dict() != own.to_dict():
        raise TaxonomyError(
            f"{folder} was trained with another taxonomy.\nIts own:\n{own.to_yaml()}\nAsked for:\n{taxonomy.to_yaml()}\n"
            "Use the folder's own taxonomy, or train new modules for the other one"
        )
    whole = (folder / "config.json").exists()
    place = base or (folder if whole else meta["base"])
    try:
        model = load_base(place, dtype)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: its base model {str(place)!r} cannot be loaded ({_line(error)}); pass the place where it is now as base="
        ) from error
    if (folder / ADAPTER).exists():
        model = _with_adapter(model, folder / ADAPTER, merge)
    config = SafetyConfig.from_dict(meta["safety"])
    processor = SafeProcessor(AutoProcessor.from_pretrained(folder if whole else place), config.llm_tokens)
    safe = SafeVLM(model, processor, config, own)
    widths = (safe.backbone.vision_width(model.config), safe.backbone.language_width(model.config))
    if widths != (meta["vision_width"], meta["language_width"]):
        raise CheckpointError(
            f"{folder}: trained for widths (vision, language) {meta['vision_width']}, {meta['language_width']}, but the base "
            f"{str(place)!r} has {widths[0]}, {widths[1]}; use the base it was trained on"
        )
    try:
        safe.safety.load_state_dict(load_file(folder / SAFETY / WEIGHTS), strict=True)
    except (RuntimeError, SafetensorError) as error:
        path = folder / SAFETY / WEIGHTS
        raise CheckpointError(f"{path}: does not hold these modules ({_line(error)}); save it anew") from error
    return safe.eval()


def base_of(folder: str | Path) -> str:
    """Where the base model of a folder is, as its config says."""
    return _meta(Path(folder))["base"]


def _meta(folder: Path) -> dict:
    for name in (CONFIG, TAXONOMY, WEIGHTS):
        if not (folder / SAFETY / name).is_file():
            raise CheckpointError(
                f"{folder}: no file {SAFETY}/{name}; give the folder that training or export wrote (it has a {SAFETY}/ in it)"
            )
    path = folder / SAFETY / CONFIG
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); save the checkpoint again") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {meta.get('format')!r}, but this version reads {FORMAT}; use the one that wrote it"
        )
    return meta


def _with_adapter(model: PreTrainedModel, folder: Path, merge: bool) -> PreTrainedModel:
    """The base with LoRA layers, merged into its weights or left beside them."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError(f"{folder}: holds LoRA weights, which need peft; pip install 'safety-modules[train]'") from error
    adapted = PeftModel.from_pretrained(model, folder)
    return adapted.merge_and_unload() if merge else adapted.base_model.model


def _line(error: Exception) -> str:
    """The first line of an error."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
