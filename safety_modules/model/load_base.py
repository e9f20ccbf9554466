"""load_base: a stock model of transformers, loaded safely, with or without its language model."""

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
        language_model: False skips the language model's blocks and output layer: the rest embeds tokens and images,
            which is all that the head needs.
        quantize: of the blocks' linear layers; such a model is on the GPU where there is one. None: not quantised.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    safe = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if language_model:
        settings = {"quantization_config": quantize.settings()} if quantize else {}
        model = AutoModelForImageTextToText.from_pretrained(base, **settings, **safe)
        if quantize:
            keep_exact(model)
        return model
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    config.get_text_config().num_hidden_layers = 0
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers warns of the blocks' weights, which are not loaded
    try:
        model = AutoModelForImageTextToText.from_pretrained(base, config=config, **safe)
    finally:
        logging.set_verbosity(verbosity)
    model.set_output_embeddings(nn.Identity())
    return model
