"""Load: a folder that training or export wrote -> a SafeVLM. Strict: what does not fit is refused with both printed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from safety_modules.checkpoints.format import (
    ADAPTER,
    SAFETY,
    WEIGHTS,
    CheckpointError,
    SafetyMeta,
    read_meta,
    read_taxonomy,
)
from safety_modules.config import ConfigError
from safety_modules.model.load_base import load_base
from safety_modules.model.quantization import Quantization
from safety_modules.model.quantization import merge as merge_quantized
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.taxonomy import Taxonomy, TaxonomyError, nearest

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    base: str | Path | None = None,
    merge: bool = True,
    taxonomy: Taxonomy | None = None,
    language_model: bool = True,
    quantize: Quantization | str | None = "auto",
) -> SafeVLM:
    """A model with its trained modules, from a folder that training or export wrote (see `checkpoints.format`).

    Args:
        dtype: of the base's weights. The modules are fp32. A base that stays quantised keeps the dtype that it was trained in.
        base: another place of the base model, where it has moved.
        merge: merge the LoRA weights into the base; into a quantised one as `quantization.merge` does, which leaves it whole.
        taxonomy: refuse the folder if its taxonomy is another one.
        language_model: False leaves it out of memory, for the head alone; see `load_base`.
        quantize: how the language model's blocks are held: "auto", as the folder's LoRA weights were trained; a value, to
            train on such a base; None, whole.

    Raises:
        CheckpointError: a file is missing or damaged, or the base does not fit.
        ConfigError: an unknown dtype, or bitsandbytes is missing.
        TaxonomyError: the taxonomy is another one; both are printed.
    """
    folder = Path(folder)
    meta, own_taxonomy = read_meta(folder), read_taxonomy(folder)
    if taxonomy is not None and taxonomy.to_dict() != own_taxonomy.to_dict():
        raise TaxonomyError(
            f"{folder} was trained with another taxonomy.\nIts own:\n{own_taxonomy.to_yaml()}\nAsked for:\n"
            f"{taxonomy.to_yaml()}\nUse the folder's own taxonomy, or train new modules for the other one"
        )
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: {nearest(dtype, list(DTYPES))}")
    if quantize == "auto":
        quantize = Quantization.from_dict(meta.quantization) if meta.quantization else None
    whole = (folder / "config.json").exists()
    base_place = base or (folder if whole else meta.base)
    try:
        model = load_base(base_place, quantize.dtype or dtype if quantize else dtype, language_model, quantize)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: its base model {str(base_place)!r} cannot be loaded ({_first_line(error)}); pass the place where it is "
            "now as base="
        ) from error
    if (folder / ADAPTER).exists() and language_model:
        model = _with_adapter(model, folder / ADAPTER, merge, _resolved_dtype(dtype, base_place, model))
    elif (folder / ADAPTER).exists():
        _check_adapter(folder)
    processor = SafeProcessor.from_pretrained(folder if whole else base_place, meta.safety.llm_tokens)
    safe_vlm = SafeVLM(model, processor, meta.safety, own_taxonomy)
    _check_widths(folder, meta, safe_vlm, base_place)
    path = folder / SAFETY / WEIGHTS
    try:
        safe_vlm.safety.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: does not hold these modules ({_first_line(error)}); save it again") from error
    return safe_vlm.eval()


def _check_widths(folder: Path, meta: SafetyMeta, model: SafeVLM, base: str | Path) -> None:
    """Refuse a base that is not as wide as the one that the modules were trained on."""
    vision, language = model.backbone.vision_width(model.config), model.backbone.language_width(model.config)
    if (vision, language) != (meta.vision_width, meta.language_width):
        raise CheckpointError(
            f"{folder}: trained for widths (vision, language) {meta.vision_width}, {meta.language_width}, but the base "
            f"{str(base)!r} has {vision}, {language}; use the base it was trained on"
        )


def _resolved_dtype(dtype: torch.dtype | str, base: str | Path, model: PreTrainedModel) -> torch.dtype:
    """The dtype that a name stands for; "auto": the one that the base's files name, its model's where they name none."""
    if dtype == "auto":
        return AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or model.dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _check_adapter(folder: Path) -> None:
    """Refuse to leave out an adapter that changes what the head reads."""
    for path in sorted((folder / ADAPTER).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            others = [name for name in file.keys() if "language_model" not in name and "lm_head" not in name]
        if others:
            raise CheckpointError(
                f"{folder}: its adapter changes {others[0]}, which the head's features pass through; export the folder first "
                "(`safety-modules export`), which merges it, or load the language model too"
            )


def _with_adapter(model: PreTrainedModel, folder: Path, merge: bool, dtype: torch.dtype) -> PreTrainedModel:
    """The base with LoRA layers, merged into its weights or left beside them."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, folder)
    if merge and Quantization.of(model):
        return merge_quantized(adapted, dtype)
    return adapted.merge_and_unload() if merge else adapted.base_model.model


def _first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
