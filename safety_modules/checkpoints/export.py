"""Export: a trained folder -> a folder that stock software loads, with the safety modules beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from safety_modules.checkpoints.control_files import copy_control
from safety_modules.checkpoints.format import CheckpointError, read_meta
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.merge_report import Unmerged
from safety_modules.checkpoints.model_card import model_card
from safety_modules.checkpoints.save import save_safety
from safety_modules.config import ConfigError
from safety_modules.files import fresh_folder, write_text
from safety_modules.model.safe_vlm import SafeVLM

PAD_ROWS = 64  # the embedding's rows are a multiple of this, as in the llava-hf folders


def export(
    folder: str | Path,
    output: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype | str = "auto",
    overwrite: bool = False,
    check: bool = True,
) -> Path:
    """Write an ordinary folder in the llava-hf layout, which transformers, vLLM and others load without our code.

    It has LoRA merged, safety tokens as vocabulary rows, the processor, `safety/` and a model card.

    Args:
        folder: what training wrote.
        output: the new folder; it appears whole or not at all.
        base: another place of the base model, where it has moved.
        dtype: of the written base weights.
        overwrite: replace `output` if it exists.
        check: compare logits before and after merging; the numbers are in the card and in `safety/merge.json`. Loads
            the base once more, twice where it was quantised, one after the other.

    Raises:
        CheckpointError, ConfigError: the folder is incomplete, `output` exists, or the base ties its embeddings.
    """
    if Path(output).exists() and not overwrite:
        raise CheckpointError(f"{output}: exists already; name another folder, or pass overwrite")
    origin = str(base or read_meta(folder).base)
    unmerged = Unmerged.of(folder, dtype, base) if check else None
    model = load(folder, dtype=dtype, base=base, merge=True)
    report = unmerged.against(model) if unmerged else None
    write_token_rows(model)
    model.base.generation_config.suppress_tokens = model.placeholders()
    with fresh_folder(output) as work:
        model.base.save_pretrained(work, state_dict=_hub_weights(model.base))
        model.processor.save_pretrained(work)
        save_safety(model, work, base=".")
        copy_control(folder, work)
        if report:
            report.write(work)
        write_text(work / "README.md", model_card(model, origin, report))
    return Path(output)


@torch.no_grad()
def write_token_rows(model: SafeVLM) -> None:
    """Give each safety token its row in the base's embedding and output layer, in place.

    The output rows are the mean of the vocabulary's: such a logit never exceeds the highest of the others, so greedy
    decoding cannot emit a placeholder even where a server ignores `suppress_tokens`.

    Raises:
        ConfigError: the base ties its embeddings, so input and output rows cannot differ.
    """
    ids = model.processor.safety_ids
    if not ids:
        return
    base = model.base
    if base.config.tie_word_embeddings or base.config.text_config.tie_word_embeddings:
        raise ConfigError(
            "the base ties input and output embeddings, so its safety tokens cannot be exported; untie them first"
        )
    if ids[-1] >= cast(nn.Embedding, base.get_input_embeddings()).weight.shape[0]:
        base.resize_token_embeddings(ids[-1] + 1, pad_to_multiple_of=PAD_ROWS, mean_resizing=False)
    embedding = cast(nn.Embedding, base.get_input_embeddings()).weight
    output = cast(nn.Linear, base.get_output_embeddings()).weight
    mean = output[: ids[0]].float().mean(0)
    embedding[ids] = model.safety.llm_tokens.weight.to(embedding.dtype)
    output[ids[0] :] = mean.to(output.dtype)


def _hub_weights(base: PreTrainedModel) -> dict[str, Tensor]:
    """The base's weights by the keys of llava-hf folders, which every server knows."""
    old, new = "vision_tower.", "vision_tower.vision_model."
    return {key if new in key else key.replace(old, new, 1): value for key, value in base.state_dict().items()}
