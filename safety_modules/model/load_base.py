"""Base: a stock model of transformers, loaded safely, whole or in part."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from safety_modules.model.quantization import Quantization, keep_exact


def load_base(
    base: str | Path,
    dtype: torch.dtype | str = "auto",
    language_model: bool = True,
    quantize: Quantization | None = None,
) -> PreTrainedModel:
    """A stock model of transformers; safetensors only, no remote code.

    Args:
        language_model: False leaves the language model's blocks and output layer out of memory: what is left embeds tokens and
            images, which is all that the head needs.
        quantize: how the blocks' linear layers are held; such a model is on the GPU where there is one. None: as they are.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    safe = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if language_model and quantize:
        model = AutoModelForImageTextToText.from_pretrained(base, quantization_config=quantize.settings(), **safe)
        keep_exact(model)
        return model
    if language_model:
        return AutoModelForImageTextToText.from_pretrained(base, **safe)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    config.get_text_config().num_hidden_layers = 0
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the blocks' weights are left in the file, which is reported as a fault
    try:
        model = AutoModelForImageTextToText.from_pretrained(base, config=config, **safe)
    finally:
        logging.set_verbosity(verbosity)
    model.set_output_embeddings(nn.Identity())
    return model
