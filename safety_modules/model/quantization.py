"""Quantization: the linear layers of a language model's blocks in 4 or 8 bits, and LoRA merged into what they stand for."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from safety_modules.config import ConfigError
from safety_modules.taxonomy import nearest

if TYPE_CHECKING:
    from peft import PeftModel

KINDS = ("nf4", "int8")
COMPUTE = ("float32", "bfloat16")
ALL_BUT_BLOCKS = (
    r"(?!.*\.language_model\.layers\.).*"  # matched against a module's full name; what matches is not quantised
)


@dataclass(frozen=True)
class Quantization:
    """How bitsandbytes holds the linear layers of the language model's blocks. Everything else stays as it is.

    Attributes:
        kind: "nf4", 4 bits with doubly quantised scales (QLoRA, arXiv 2305.14314), or "int8" (LLM.int8(), arXiv 2208.07339).
        compute: nf4 only: dtype that the layers multiply in, "float32" or "bfloat16".
        dtype: of the weights that were quantised and of all others; None where the loader says it.
    """

    kind: str
    compute: str = "float32"
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name, value, names in (("kind", self.kind, KINDS), ("compute", self.compute, COMPUTE)):
            if value not in names:
                raise ConfigError(f"quantization.{name}: unknown value {value!r}; {nearest(str(value), list(names))}")

    @classmethod
    def of(cls, base: PreTrainedModel) -> Quantization | None:
        """That of a loaded base; None where its weights are whole."""
        settings = vars(base.config).get("quantization_config")  # an attribute of quantised models only
        if settings is None:
            return None
        if not settings.load_in_4bit:
            return cls("int8", dtype=_name(base.dtype))
        return cls("nf4", _name(settings.bnb_4bit_compute_dtype), _name(base.dtype))

    @classmethod
    def from_dict(cls, data: dict) -> Quantization:
        """The inverse of `to_dict`; an unknown key is a ConfigError with the nearest name."""
        names = [field.name for field in fields(cls)]
        for key in data:
            if key not in names:
                raise ConfigError(f"quantization: unknown key {key!r}; {nearest(key, names)}")
        return cls(**data)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    def settings(self) -> BitsAndBytesConfig:
        """What transformers' `from_pretrained` takes.

        Raises:
            ConfigError: bitsandbytes is not installed.
        """
        try:
            import bitsandbytes  # noqa: F401 - an extra: its absence is told here, before anything is loaded
        except ImportError as error:
            raise ConfigError(
                f"quantize {self.kind!r} needs bitsandbytes, which cannot be imported ({error}); pip install bitsandbytes"
            ) from error
        if self.kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[ALL_BUT_BLOCKS])
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, self.compute),
            llm_int8_skip_modules=[ALL_BUT_BLOCKS],
        )


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the layers that bitsandbytes holds."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return [name for name, module in model.named_modules() if isinstance(module, (Linear4bit, Linear8bitLt))]


def keep_exact(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    It rounds the scales to bfloat16 and changes the layout, for good: a later dequantisation, and so `model.dequantize()` of
    transformers and PEFT's merge, reads garbage (bitsandbytes 0.50).
    """
    for name in quantized_layers(model):
        model.get_submodule(name).support_avx512bf16_for_cpu = False


@torch.no_grad()
def dequantized(layer: nn.Linear) -> Tensor:
    """W_q: the weight that a quantised layer stands for, (outputs, inputs), float32, where the layer is."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
    from bitsandbytes.nn import Linear4bit

    if isinstance(layer, Linear4bit):
        state = copy.copy(layer.weight.quant_state)
        state.dtype = torch.float32  # its own is that of the weights before, which would round the product code x scale
        return dequantize_4bit(layer.weight.data, state)
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB  # the first forward moves them
    return int8_vectorwise_dequant(layer.weight.data, scales)


@torch.no_grad()
def merge(adapted: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Merge LoRA layers into a quantised base: W_q + scale B A, added in float32, then cast; layer after layer, in place.

    The adapter was trained beside W_q, not beside the weights before quantisation, so it corrects the error of W_q as well;
    and the sum is not quantised again, which would add a new error.

    Args:
        adapted: the quantised base with its adapter; consumed.
        dtype: of all weights of the result.

    Returns:
        The base, without quantisation and adapter, on the CPU. Memory: all weights in `dtype` and one layer in float32.
    """
    base = adapted.base_model.model
    for name in quantized_layers(base):
        place = name.removesuffix(".base_layer")
        layer, outer = base.get_submodule(name), base.get_submodule(place)
        weight = dequantized(layer)
        if outer is not layer:
            for adapter in outer.active_adapters:
                weight += outer.get_delta_weight(adapter).float()
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight.to("cpu", dtype))
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.to("cpu", dtype))
        layer.weight = None  # a 4-bit weight and its layer hold each other, so the layer's own end would not free it
        base.set_submodule(place, plain)
    whole = adapted.merge_and_unload()  # what was not quantised
    whole.hf_quantizer.remove_quantization_config(whole)
    return whole.to("cpu", dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
