"""Models of real proportions with random weights, and rows of LLaVA's lengths, to measure speed on."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig

from data_recipes.riskworld import BASE
from safety_modules.config import SafetyConfig
from safety_modules.model.head import HeadOutput
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.head_inputs import HeadInputs
from safety_modules.prompt.padding import IGNORE
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.taxonomy import Taxonomy

TEXT_ONLY = 0.06  # of LLaVA-1.5's mixture: its 40 thousand conversations of ShareGPT among 665 thousand rows
LONGEST = 2048  # tokens, of the original recipe
WORDS = (100, 600)  # ids of words in the small tokenizer that is used


@dataclass(frozen=True)
class BenchmarkShape:
    """A model and a training step; the defaults are LLaVA-1.5's.

    Attributes:
        vision, text, safety: fields of CLIPVisionConfig, LlamaConfig and SafetyConfig.
        batch: rows of a step.
        pool: rows that steps are drawn from.
        repeats: of each measurement.
        scale: of the lengths of all texts, against LLaVA-1.5's.
        answer: new tokens of an answer.
        rank: of LoRA.
    """

    name: str
    vision: dict
    text: dict
    safety: dict = field(default_factory=dict)
    batch: int = 8
    pool: int = 96
    repeats: int = 3
    scale: float = 1.0
    answer: int = 128
    rank: int = 256


def layers(width: int, feed_forward: int, count: int, heads: int, **others: int) -> dict[str, int]:
    """Fields of a transformer's config."""
    sizes = {"hidden_size": width, "intermediate_size": feed_forward, "num_hidden_layers": count}
    return {**sizes, "num_attention_heads": heads, **others}


CLIP_L = layers(1024, 4096, 24, 16, image_size=336, patch_size=14)
TINY = BenchmarkShape(  # LLaVA-1.5's proportions: a 32nd of the width, half of the depth, a quarter of the tokens
    "tiny",
    layers(32, 128, 12, 2, image_size=96, patch_size=8),
    layers(128, 344, 16, 4, vocab_size=1024),
    {"head_tokens": 16, "llm_tokens": 2, "projector_width": 32},
    batch=16,
    pool=48,
    repeats=4,
    scale=0.25,
    answer=64,
    rank=16,
)
LLAVA_7B = BenchmarkShape("7b", CLIP_L, layers(4096, 11008, 32, 32, vocab_size=32064))
LLAVA_13B = BenchmarkShape("13b", CLIP_L, layers(5120, 13824, 40, 40, vocab_size=32064), batch=4, pool=48)
SHAPES = {shape.name: shape for shape in (TINY, LLAVA_7B, LLAVA_13B)}


class PlainVLM(SafeVLM):
    """The same base on the same path, without the work of the safety modules: what they cost is the difference."""

    def score(self, features: Tensor, head_inputs: HeadInputs) -> HeadOutput:
        """No scores."""
        return HeadOutput(None, None)


def build_model(shape: BenchmarkShape, device: str, dtype: torch.dtype, plain: bool = False) -> SafeVLM:
    """A model of the shape with random weights; on the device "meta" without any. Args: plain: a PlainVLM."""
    config, processor = SafetyConfig(**shape.safety), AutoProcessor.from_pretrained(BASE)
    side, processor.patch_size = shape.vision["image_size"], shape.vision["patch_size"]
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    safe_processor = SafeProcessor(processor, config.llm_tokens)
    base_config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.vision),
        text_config=LlamaConfig(**shape.text, max_position_embeddings=2 * LONGEST),
        image_token_index=safe_processor.image_token_id,
    )
    with torch.device(device):
        base = AutoModelForImageTextToText.from_config(base_config, dtype=dtype)
        base.generation_config.eos_token_id = None  # answers of one length
        model = (PlainVLM if plain else SafeVLM)(base, safe_processor, config, Taxonomy.default())
    model.base.requires_grad_(False)
    if plain:
        model.safety.requires_grad_(False)
    return model


def row_lengths(shape: BenchmarkShape, count: int, seed: int = 0) -> list[tuple[int, bool]]:
    """Tokens of the texts of rows, and whether there is an image.

    An assumption, the same for everything that is compared: most rows have an image and 20 to 1,400 tokens, half of
    them below 180; the others are text alone, up to 2,048 tokens, half of them below 700.
    """
    rng, lengths = random.Random(seed), []
    for _ in range(count):
        image = rng.random() >= TEXT_ONLY
        middle, spread, most = (180, 0.9, 1400) if image else (700, 0.7, LONGEST)
        tokens = min(max(rng.lognormvariate(math.log(middle), spread), 20), most)
        lengths.append((max(8, round(tokens * shape.scale)), image))
    return lengths


def random_rows(
    shape: BenchmarkShape, model: SafeVLM, lengths: list[tuple[int, bool]], tokens: bool = True, features: bool = False
) -> list[dict]:
    """Rows as `ExchangeDataset` returns them, of random tokens and pixels; half of a text is its answer.

    Args:
        tokens: with the safety tokens.
        features: features of the vision tower in place of pixels.
    """
    generator = torch.Generator().manual_seed(1)
    side, patches = shape.vision["image_size"], model.backbone.patches(model.config)
    rows = []
    for number, (length, image) in enumerate(lengths):
        head = [1]
        if image:
            head += (model.processor.safety_ids if tokens else []) + [model.processor.image_token_id] * patches
        ids = torch.cat([torch.tensor(head), torch.randint(*WORDS, (length,), generator=generator)])  # (T,)
        place, answer_start = torch.arange(len(ids)), len(head) + length // 2
        row = {
            "input_ids": ids,
            "labels": torch.where(place < answer_start, IGNORE, ids),
            "question_mask": ((place >= len(head)) & (place < answer_start)).long(),
            "tiles": torch.ones(int(image), dtype=torch.long),
            "risk_type": torch.tensor(number % 7),
            "risk_level": torch.tensor(number % 4),
            "row": f"row {number}",
        }
        if features:
            size = (int(image), patches, model.backbone.vision_width(model.config))
            row["features"] = torch.randn(*size, generator=generator).to(torch.bfloat16)
        elif image:
            row["pixel_values"] = torch.randn(1, 3, side, side, generator=generator)
        rows.append(row)
    return rows
