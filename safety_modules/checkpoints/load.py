"""load: a folder that training or export wrote -> a SafeVLM. Strict: a folder that does not fit is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedModel

from safety_modules.checkpoints.format import ADAPTER, SAFETY, CheckpointError, read_meta, read_taxonomy, read_weights
from safety_modules.config import ConfigError
from safety_modules.config_reader import parse
from safety_modules.devices import check_dtype, dtype_name, resolve_device, resolve_dtype
from safety_modules.model.load_base import load_base
from safety_modules.model.quantization import Quantization, merge_quantized
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.taxonomy import Taxonomy, TaxonomyError


def load(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    base: str | Path | None = None,
    merge: bool = True,
    taxonomy: Taxonomy | None = None,
    language_model: bool = True,
    quantize: Quantization | Literal["auto"] | None = "auto",
) -> SafeVLM:
    """A model with its trained modules, from a folder that training or export wrote (see `checkpoints.format`).

    Args:
        dtype: of the base's weights. The modules are fp32. A base that stays quantised keeps the dtype of its training.
        base: another place of the base model, where it has moved.
        merge: merge LoRA weights into the base; a quantised base is dequantised first, see `merge_quantized`.
        taxonomy: an error if the folder has another one.
        language_model: False skips its blocks, for the head alone; see `load_base`.
        quantize: of the language model's blocks: "auto", as in the training of the folder's LoRA weights; a value, to
            train on such a base; None, not at all.

    Raises:
        CheckpointError: a file is missing or damaged, or the base does not fit.
        ConfigError: an unknown dtype, or bitsandbytes is missing.
        TaxonomyError: the taxonomy is another one; both are printed.
    """
    folder = Path(folder)
    meta, own_taxonomy = read_meta(folder), read_taxonomy(folder)
    _check_taxonomy(folder, own_taxonomy, taxonomy)
    check_dtype(dtype)
    quantization = _quantization(quantize, meta.quantization, folder)
    is_export = (folder / "config.json").exists()
    base = base or (folder if is_export else meta.base)
    try:
        model = load_base(base, quantization and quantization.dtype or dtype, language_model, quantization)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: its base model {str(base)!r} cannot be loaded ({_first_line(error)}); pass its place as base="
        ) from error
    if (folder / ADAPTER).exists() and language_model:
        model = _with_adapter(model, folder / ADAPTER, merge, _resolved_dtype(dtype, base, model))
    elif (folder / ADAPTER).exists():
        _check_adapter(folder)
    processor = SafeProcessor.from_pretrained(folder if is_export else base, meta.safety.llm_tokens)
    safe_vlm = SafeVLM(model, processor, meta.safety, own_taxonomy)
    if safe_vlm.widths != (meta.vision_width, meta.language_width):
        raise CheckpointError(
            f"{folder}: trained for widths (vision, language) {meta.vision_width}, {meta.language_width}, but the base "
            f"{str(base)!r} has {safe_vlm.widths}; use the base it was trained on"
        )
    try:
        safe_vlm.safety.load_state_dict(read_weights(folder), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: its weights do not fit ({_first_line(error)}); save them again") from error
    return safe_vlm.eval()


def resolve_compute(folder: str | Path, device: str, dtype: torch.dtype | str) -> tuple[str, torch.dtype | str]:
    """Where a model runs and the dtype of its weights, with "auto" resolved; see `devices`.

    Args: folder: of the model, or the hub name of a stock model.
    """
    device = resolve_device(device)
    check_dtype(dtype)
    if dtype != "auto":
        return device, dtype
    apart = (Path(folder) / SAFETY).is_dir() and not (Path(folder) / "config.json").is_file()  # from its base
    try:
        base = read_meta(Path(folder)).base if apart else folder
        stored = AutoConfig.from_pretrained(base, trust_remote_code=False).dtype
    except (OSError, ValueError):
        return device, dtype  # loading the model says what is wrong
    return device, dtype if stored is None else resolve_dtype("auto", device, dtype_name(stored))


def _quantization(
    quantize: Quantization | Literal["auto"] | None, trained: dict | None, folder: Path
) -> Quantization | None:
    """The quantisation that `quantize` stands for. Args: trained: that of the folder's training."""
    if not isinstance(quantize, str):
        return quantize
    if quantize != "auto":
        raise ConfigError(f"quantize: unknown value {quantize!r}; give 'auto', a Quantization or None")
    return parse(Quantization, trained, f"{folder}: quantization") if trained else None


def _check_taxonomy(folder: Path, own: Taxonomy, wanted: Taxonomy | None) -> None:
    if wanted is not None and wanted.to_dict() != own.to_dict():
        raise TaxonomyError(
            f"{folder} was trained with another taxonomy.\nIts own:\n{own.to_yaml()}\nAsked for:\n{wanted.to_yaml()}\n"
            "Use the folder's own taxonomy, or train new modules for the other one"
        )


def _resolved_dtype(dtype: torch.dtype | str, base: str | Path, model: PreTrainedModel) -> torch.dtype:
    """The dtype of a name; "auto": the one that the base's files name, else its model's."""
    if dtype == "auto":
        return AutoConfig.from_pretrained(base, trust_remote_code=False).dtype or model.dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _check_adapter(folder: Path) -> None:
    """Check that an adapter, which is not loaded, does not change the head's features."""
    for path in sorted((folder / ADAPTER).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            others = [name for name in file.keys() if "language_model" not in name and "lm_head" not in name]
        if others:
            raise CheckpointError(
                f"{folder}: its adapter changes {others[0]}, which the head's features pass through; export the folder "
                "first (`safety-modules export`), which merges it, or load the language model too"
            )


def _with_adapter(model: PreTrainedModel, folder: Path, merge: bool, dtype: torch.dtype) -> PreTrainedModel:
    """The base with LoRA layers, merged into its weights or beside them."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, folder)
    if merge and Quantization.of(model):
        return merge_quantized(adapted, dtype)
    return cast(PreTrainedModel, adapted.merge_and_unload() if merge else adapted.base_model.model)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
