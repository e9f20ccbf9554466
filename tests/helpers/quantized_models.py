"""Quantised bases, and folders trained on them."""

import torch
from helpers import tiny

from safety_modules import SafeVLM
from safety_modules.checkpoints.format import ADAPTER
from safety_modules.checkpoints.save import save_safety
from safety_modules.files import fresh_folder
from safety_modules.model.quantization import Quantization, quantized_layers
from train.build import add_lora
from train.config import LoraConfig

BLOCKS = "model.language_model.layers."


def adapted(base, folder, kind, **quantization):
    """A folder with large random LoRA weights that belong to a quantised base; nothing is trained."""
    torch.manual_seed(1)
    model = SafeVLM.attach(base, tiny.safety_config(), quantize=Quantization(kind, **quantization))
    adapter = add_lora(model, LoraConfig(rank=4, alpha=8, dropout=0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "llm_tokens" in name:
                parameter.normal_(std=0.5)
    with fresh_folder(folder) as work:
        save_safety(model, work, str(base))
        adapter.save_pretrained(work / ADAPTER)
    return folder


def places(model):
    return [name.removesuffix(".base_layer") for name in quantized_layers(model.base)]
