"""Checkpoint: the folder that holds trained safety modules. Safetensors only, strict."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from safety_modules.base import load_base
from safety_modules.calibration import Calibration
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.errors import UserError
from safety_modules.modeling import SafeVLM
from safety_modules.policy import Policy
from safety_modules.processing import SafeProcessor
from safety_modules.quantization import Quantization
from safety_modules.quantization import merge as merge_quantized
from safety_modules.taxonomy import Taxonomy, TaxonomyError, nearest

logger = logging.getLogger(__name__)

FORMAT = 1
SAFETY, ADAPTER = "safety", "adapter"
WEIGHTS, CONFIG, TAXONOMY = "model.safetensors", "config.json", "taxonomy.yaml"
CALIBRATION, POLICY = "calibration.json", "policy.yaml"  # optional
DTYPES = ("auto", "float32", "bfloat16", "float16")


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


def save_safety(model: SafeVLM, folder: Path, base: str, state: dict[str, Tensor] | None = None) -> None:
    """Write `folder/safety/`: config, with the base's quantisation where it is quantised, taxonomy and weights.

    Args:
        base: where the base model is, a folder or a hub name; "." for the same folder.
        state: the modules' weights, where the model holds only a part of each; its own by default.
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
    if quantization := Quantization.of(model.base):
        meta["quantization"] = quantization.to_dict()
    (target / CONFIG).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    (target / TAXONOMY).write_text(model.taxonomy.to_yaml(), encoding="utf-8")
    state = model.safety.state_dict() if state is None else state
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, target / WEIGHTS)


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    base: str | Path | None = None,
    merge: bool = True,
    taxonomy: Taxonomy | None = None,
    language_model: bool = True,
    quantize: Quantization | str | None = "auto",
) -> SafeVLM:
    """Load a folder that training or export wrote.

    Args:
        folder: holds `safety/`, and either a whole base model (an export) or nothing of it (the base is then taken from
            where `safety/config.json` says) and perhaps `adapter/`, the LoRA weights.
        dtype: of the base's weights. The modules are fp32. A base that stays quantised keeps the dtype that it was trained in.
        base: another place of the base model, where it has moved.
        merge: merge the LoRA weights into the base; into a quantised one as `quantization.merge` does, which leaves it whole.
        taxonomy: refuse the folder if its taxonomy is another one.
        language_model: False leaves it out of memory, for the head alone; see `base.load_base`.
        quantize: how the language model's blocks are held: "auto", as the folder's LoRA weights were trained; a value, to
            train on such a base; None, whole.

    Raises:
        CheckpointError: a file is missing or damaged, or the base does not fit.
        ConfigError: an unknown dtype, or bitsandbytes is missing.
        TaxonomyError: the taxonomy is another one; both are printed.
    """
    folder = Path(folder)
    meta = _meta(folder)
    own = taxonomy_of(folder)
    if taxonomy is not None and taxonomy.to_dict() != own.to_dict():
        raise TaxonomyError(
            f"{folder} was trained with another taxonomy.\nIts own:\n{own.to_yaml()}\nAsked for:\n{taxonomy.to_yaml()}\n"
            "Use the folder's own taxonomy, or train new modules for the other one"
        )
    whole = (folder / "config.json").exists()
    place = base or (folder if whole else meta["base"])
    if dtype not in DTYPES and isinstance(dtype, str):
        raise ConfigError(f"dtype {dtype!r}: {nearest(dtype, list(DTYPES))}")
    if quantize == "auto":
        quantize = Quantization.from_dict(meta["quantization"]) if "quantization" in meta else None
    try:
        model = load_base(place, quantize.dtype or dtype if quantize else dtype, language_model, quantize)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: its base model {str(place)!r} cannot be loaded ({_line(error)}); pass the place where it is now as base="
        ) from error
    if (folder / ADAPTER).exists() and not language_model:
        _check_adapter(folder)
    elif (folder / ADAPTER).exists():
        model = _with_adapter(model, folder / ADAPTER, merge, _dtype(dtype, place, model))
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


def save_calibration(calibration: Calibration, folder: str | Path, about: dict) -> None:
    """Write `folder/safety/calibration.json`, bound to the head's weights there.

    Args:
        about: plain values for a reader: the data set, the numbers before and after.
    """
    folder = Path(folder)
    data = {"format": FORMAT, "head": digest(folder), "about": about, "calibration": calibration.to_dict()}
    write_text(folder / SAFETY / CALIBRATION, json.dumps(data) + "\n")


def load_calibration(folder: str | Path, taxonomy: Taxonomy) -> Calibration:
    """The folder's calibration; the identity where it has none.

    Raises:
        CheckpointError: it was made for other weights of the head.
        CalibrationError: it does not fit the taxonomy.
    """
    path = Path(folder) / SAFETY / CALIBRATION
    if not path.is_file():
        return Calibration()
    data = _json(path)
    if data.get("head") != digest(Path(folder)):
        raise CheckpointError(f"{path}: was made for other weights of the head; run scripts.calibrate again, or delete the file")
    return Calibration.from_dict(data.get("calibration"), taxonomy)


def load_policy(folder: str | Path, taxonomy: Taxonomy, calibration: Calibration, path: str | Path | None = None) -> Policy:
    """A policy file, read with a calibration; without a path the folder's own, and the default where it has none."""
    own = Path(folder) / SAFETY / POLICY
    chosen = path or (own if own.is_file() else None)
    return Policy.from_yaml(chosen, taxonomy, calibration) if chosen else Policy.default(taxonomy)


def save_policy(path: str | Path, folder: str | Path) -> None:
    """Make a policy file the folder's own, `folder/safety/policy.yaml`; read it with `Policy.from_yaml` first."""
    write_text(Path(folder) / SAFETY / POLICY, Path(path).read_text(encoding="utf-8"))


def carry(source: str | Path, target: str | Path) -> None:
    """Copy calibration and policy of one folder's `safety/` to another's; the calibration only where the head is the same."""
    source, target = Path(source) / SAFETY, Path(target) / SAFETY
    names = [name for name in (CALIBRATION, POLICY) if (source / name).is_file()]
    if CALIBRATION in names and digest(source.parent) != digest(target.parent):
        logger.warning(
            "%s: the head was trained on, so its calibration and policy are left behind; run scripts.calibrate", target
        )
        return
    for name in names:
        shutil.copyfile(source / name, target / name)


def base_of(folder: str | Path) -> str:
    """Where the base model of a folder is, as its config says."""
    return _meta(Path(folder))["base"]


def taxonomy_of(folder: str | Path) -> Taxonomy:
    """The categories of a folder."""
    _meta(Path(folder))  # complains of what is no such folder
    return Taxonomy.from_yaml(Path(folder) / SAFETY / TAXONOMY)


def digest(folder: str | Path) -> str:
    """A hash of all weights that a verdict depends on: the modules' without the language model's tokens."""
    found = hashlib.sha256()
    for name, value in sorted(load_file(Path(folder) / SAFETY / WEIGHTS).items()):
        if not name.startswith("llm_tokens."):
            found.update(name.encode() + value.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _meta(folder: Path) -> dict:
    for name in (CONFIG, TAXONOMY, WEIGHTS):
        if not (folder / SAFETY / name).is_file():
            raise CheckpointError(
                f"{folder}: no file {SAFETY}/{name}; give the folder that training or export wrote (it has a {SAFETY}/ in it)"
            )
    return _json(folder / SAFETY / CONFIG)


def _json(path: Path) -> dict:
    """A JSON file of this format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); write it again") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: format {found!r}, but this version reads {FORMAT}; use the one that wrote it")
    return data


def _dtype(dtype: torch.dtype | str, place: str | Path, model: PreTrainedModel) -> torch.dtype:
    """What "auto" and other names stand for: the dtype that a base's files name, its model's where they name none."""
    if dtype == "auto":
        return AutoConfig.from_pretrained(place, trust_remote_code=False).dtype or model.dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _check_adapter(folder: Path) -> None:
    """Refuse to leave out an adapter that changes what the head reads."""
    for path in sorted((folder / ADAPTER).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            strange = [name for name in file.keys() if "language_model" not in name and "lm_head" not in name]
        if strange:
            raise CheckpointError(
                f"{folder}: its adapter changes {strange[0]}, which the head's features pass through; export the folder first "
                "(scripts.export), which merges it, or load the language model too"
            )


def _with_adapter(model: PreTrainedModel, folder: Path, merge: bool, dtype: torch.dtype) -> PreTrainedModel:
    """The base with LoRA layers, merged into its weights or left beside them."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise CheckpointError(f"{folder}: holds LoRA weights, which need peft; pip install 'safety-modules[train]'") from error
    adapted = PeftModel.from_pretrained(model, folder)
    if merge and Quantization.of(model):
        return merge_quantized(adapted, dtype)
    return adapted.merge_and_unload() if merge else adapted.base_model.model


def _line(error: Exception) -> str:
    """The first line of an error."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
