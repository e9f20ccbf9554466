"""Quantization: the linear layers of a language model's blocks in 4 or 8 bits, and merging LoRA into them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from safety_modules.config import ConfigError
from safety_modules.devices import dtype_name
from safety_modules.errors import nearest

if TYPE_CHECKING:
    from peft import PeftModel

KINDS = ("nf4", "int8")
COMPUTE = ("float32", "bfloat16")
ALL_BUT_BLOCKS = r"(?!.*\.language_model\.layers\.).*"  # full names of the modules that are not quantised


@dataclass(frozen=True)
class Quantization:
    """How bitsandbytes stores the linear layers of the language model's blocks. Everything else stays as it is.

    Attributes:
        kind: "nf4", 4 bits with double quantisation (QLoRA, arXiv 2305.14314), or "int8" (LLM.int8(), arXiv
            2208.07339).
        compute: nf4 only: dtype that the layers multiply in, "float32" or "bfloat16".
        dtype: of the weights before quantisation and of all others; None where the loader chooses it.
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
        """The quantisation of a loaded base; None if it has none."""
        settings = vars(base.config).get("quantization_config")  # an attribute of quantised models only
        if settings is None:
            return None
        if not settings.load_in_4bit:
            return cls("int8", dtype=dtype_name(base.dtype))
        return cls("nf4", dtype_name(settings.bnb_4bit_compute_dtype), dtype_name(base.dtype))

    def settings(self) -> BitsAndBytesConfig:
        """What transformers' `from_pretrained` takes.

        Raises:
            ConfigError: bitsandbytes is not installed.
        """
        try:
            import bitsandbytes  # noqa: F401 - an extra: fail before anything is loaded
        except ImportError as error:
            raise ConfigError(
                f"quantize {self.kind!r} needs bitsandbytes, which cannot be imported ({error}); "
                "pip install bitsandbytes"
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
    """Names of the layers that bitsandbytes quantised."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    return [name for name, module in model.named_modules() if isinstance(module, (Linear4bit, Linear8bitLt))]


def keep_exact(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    Repacking rounds the scales to bfloat16 and changes the layout for good: a later dequantisation, and so
    transformers' `model.dequantize()` and PEFT's merge, reads garbage (bitsandbytes 0.50).
    """
    for name in quantized_layers(model):
        cast(Any, model.get_submodule(name)).support_avx512bf16_for_cpu = False


@torch.no_grad()
def dequantized(layer: nn.Linear) -> Tensor:
    """W_q: the dequantised weight of a layer, (outputs, inputs), float32, on the layer's device."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
    from bitsandbytes.nn.modules import Linear4bit

    weight = cast(Any, layer.weight)  # Params4bit or Int8Params, with attributes that no tensor has
    if isinstance(layer, Linear4bit):
        state = copy.copy(weight.quant_state)
        state.dtype = torch.float32  # the original weights' dtype would round the product of code and scale
        return dequantize_4bit(weight.data, state)
    scales = cast(Any, layer).state.SCB if weight.SCB is None else weight.SCB  # the first forward moves them
    return int8_vectorwise_dequant(weight.data, scales)


@torch.no_grad()
def merge_quantized(adapted: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Merge LoRA layers into a quantised base: W_q + scale B A, added in float32, then cast; layer by layer, in place.

    The adapter was trained beside W_q, not beside the weights before quantisation, so it corrects the error of W_q as
    well; and the sum is not quantised again, which would add a new error.

    Args:
        adapted: the quantised base with its adapter; consumed.
        dtype: of all weights of the result.

    Returns:
        The base, without quantisation and adapter, on the CPU. Memory: all weights in `dtype` and one layer in float32.
    """
    base = cast(PreTrainedModel, adapted.base_model.model)
    for name in quantized_layers(base):
        target = name.removesuffix(".base_layer")
        layer: Any = base.get_submodule(name)
        lora_layer: Any = base.get_submodule(target)
        weight = dequantized(layer)
        if lora_layer is not layer:
            for adapter in lora_layer.active_adapters:
                weight += lora_layer.get_delta_weight(adapter).float()
        merged = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        merged.weight = nn.Parameter(weight.to("cpu", dtype))
        if layer.bias is not None:
            merged.bias = nn.Parameter(layer.bias.to("cpu", dtype))
        layer.weight = None  # a 4-bit weight and its layer reference each other: without this the weight is not freed
        base.set_submodule(target, merged)
    model = adapted.merge_and_unload()  # the layers that were not quantised
    model.hf_quantizer.remove_quantization_config(model)
    return model.to("cpu", dtype)
