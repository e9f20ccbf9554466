"""Footprint: what the forward pass of a stage's largest micro-batch leaves for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from train.config import TrainConfig
from train.data.dataset import Collator, ExchangeDataset
from train.planning.memory import Blocks, logit_bytes, module_bytes, pair_bytes, stack_bytes
from train.planning.meta_model import BLOCKS, MetaModel, part_of

SAMPLE = 32  # rows at least that are read to find the longest


@dataclass(frozen=True)
class Batch:
    """Sizes of a micro-batch.

    Attributes:
        rows, tokens: B and T of `input_ids`; where rows are packed, 1 and the sum of their lengths.
        padded: rows may be filled up.
        positions: scored for their labels, of all rows.
        images: that the tower sees.
        units, question: pairs of image and reading that the head judges, and tokens of the longest question.
    """

    rows: int
    tokens: int
    padded: bool
    positions: int
    images: int
    units: int
    question: int


def longest(rows: ExchangeDataset, patches: int, size: int, packing: bool) -> Batch:
    """A micro-batch of the longest rows: found by their letters and images, then read and measured.

    Args: patches: of an image. size: rows of a micro-batch.

    Raises:
        DataError: one of them does not fit, as it would in training.
    """
    lengths = rows.lengths(patches)
    order = sorted(range(len(rows)), key=lambda i: -lengths[i][0])
    read = sorted((rows[i] for i in order[: max(SAMPLE, size)]), key=lambda row: -len(row["input_ids"]))
    batch = Collator(rows.processor, packing)((read * size)[:size])
    count, tokens = batch["input_ids"].shape
    return Batch(
        count,
        tokens,
        size > 1 and not packing,
        len(batch["keep"]) * count,
        sum(int(row["tiles"].sum()) for row in (read * size)[:size]),
        len(batch["head_inputs"].units),
        batch["head_inputs"].question_ids.shape[-1],
    )


def activations(
    meta_model: MetaModel, config: TrainConfig, batch: Batch, compute: torch.dtype, checkpointing: bool, cast: bool
) -> dict[str, int]:
    """Bytes by origin; the formulas are in `memory`. A part that no gradient passes through keeps nothing.

    Args:
        compute: dtype that linear layers multiply in.
        cast: from weights as they were loaded, by autocast; else all weights are of that dtype (DeepSpeed).
    """
    model, size = meta_model.model, compute.itemsize
    text, vision = model.config.get_text_config(), model.config.vision_config
    patches, width = model.backbone.patches(model.config), text.hidden_size
    named = dict(model.named_parameters())
    stream = (
        4 if cast and model.base.get_input_embeddings().weight.dtype != compute else size
    )  # two dtypes add up to 32 bits
    recast = {n for n, p in named.items() if cast and p.ndim > 1 and p.is_floating_point() and p.dtype != compute}
    tower = meta_model.trains("vision tower")
    projector = tower or meta_model.trains("base projector")
    found = {"language model": 0, "vision tower": 0, "logits": 0, "modules": 0, "cast weights": 0, "one block": 0}
    working = []
    if tower:
        weights = sum(named[n].numel() for n in recast if part_of(n) == "vision tower") // vision.num_hidden_layers
        stack = Blocks(
            vision.num_hidden_layers,
            vision.hidden_size,
            vision.intermediate_size,
            vision.num_attention_heads,
            gated=False,
            trained=meta_model.trains("vision tower"),
            weights=weights,
        )
        found["vision tower"], more = stack_bytes(stack, batch.images, patches + 1, size, stream, checkpointing)
        working.append(more)
    if projector:
        found["vision tower"] += batch.images * patches * size * (model.backbone.vision_width(model.config) + 2 * width)
    layers = 0 if config.head_only else text.num_hidden_layers - _first(meta_model)
    if layers:
        blocks = [n for n in recast if BLOCKS in f".{n}"]
        stack = _blocks(meta_model, config, layers, recast)
        pairs = 0
        if not config.data.packing:
            pairs = pair_bytes(config.attention or "sdpa", text.num_attention_heads, size, batch.padded)
        kept, more = stack_bytes(stack, batch.rows, batch.tokens, size, stream, checkpointing, pairs)
        found["language model"] = kept
        working.append(more)
        found["cast weights"] += size * sum(
            named[n].numel() for n in blocks if named[n].requires_grad
        )  # cached over the pass
    if not config.head_only:
        found["logits"] = logit_bytes(batch.positions, text.vocab_size, width, size)
        found["cast weights"] += size * sum(named[n].numel() for n in recast if part_of(n) == "output layer")
    if meta_model.trains("safety projector", "head tokens", "head"):
        shape = model.safety_config
        depth = 2 * shape.projector_depth if shape.projector == "c_abstractor" else 0
        seen = shape.projector_grid**2 if shape.projector_grid and depth else patches
        keys = batch.units * (shape.head_tokens + seen + batch.question)
        images = max(batch.images, 1) if meta_model.trains("safety projector") else 0
        visual = model.backbone.vision_width(model.config)
        found["modules"] = module_bytes(images, patches, visual, shape.projector_width, depth, width, keys, size)
        found["cast weights"] += size * sum(named[n].numel() for n in recast if part_of(n) == "safety projector")
    found["one block"] = max(working, default=0)
    return found


def _blocks(meta_model: MetaModel, config: TrainConfig, layers: int, recast: set[str]) -> Blocks:
    """The language model's blocks, as `memory` wants them."""
    text = meta_model.model.config.get_text_config()
    named = [(n, p) for n, p in meta_model.model.named_parameters() if BLOCKS in f".{n}"]
    lora = config.lora
    adapted = {p.dtype for n, p in named if "lora_A" in n}
    return Blocks(
        layers,
        text.hidden_size,
        text.intermediate_size,
        text.num_attention_heads,
        trained=any(p.requires_grad for n, p in named if "lora_" not in n),
        rank=lora.rank if lora and any(p.requires_grad for n, p in named if "lora_" in n) else 0,
        mask=1 if lora and lora.dropout else 0,
        apart=bool(lora) and (lora.dropout > 0 or any("lora_" in n for n in recast) or len(adapted) > 1),
        weights=sum(p.numel() for n, p in named if n in recast and not p.requires_grad) // text.num_hidden_layers,
    )


def _first(meta_model: MetaModel) -> int:
    """The lowest block of the language model that a gradient passes through; the number of blocks where none does."""
    blocks = meta_model.model.config.get_text_config().num_hidden_layers
    if meta_model.trains("language-model tokens", "vision tower", "base projector"):
        return 0
    low = [blocks]
    for name, parameter in meta_model.model.named_parameters():
        if parameter.requires_grad and part_of(name) in ("language model", "LoRA"):
            low.append(
                int(f".{name}".split(BLOCKS)[1].split(".")[0])
                if BLOCKS in f".{name}"
                else 0
                if "embed" in name
                else blocks
            )
    return min(low)
