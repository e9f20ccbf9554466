"""Benchmark: models of real proportions with random weights, and rows of LLaVA's lengths, to measure on."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from safety_modules.config import SafetyConfig
from safety_modules.model.head import HeadOutput
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.padding import IGNORE
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.taxonomy import Taxonomy
from train.experiments.harness import BASE

TEXT_ONLY = 0.06  # of LLaVA-1.5's mixture: its 40 thousand conversations of ShareGPT among 665 thousand rows
LONGEST = 2048  # tokens, of the original recipe
WORDS = (100, 600)  # ids of words in the small tokenizer that is used


@dataclass(frozen=True)
class Shape:
    """A model and a training step.

    Attributes:
        vision, text: of CLIPVisionConfig and LlamaConfig.
        safety: of SafetyConfig.
        batch: rows of a step.
        pool: rows that steps are drawn from.
        repeats: times that each way is measured.
        scale: of all lengths of texts, against LLaVA-1.5's.
        answer: new tokens when answering.
        rank: of LoRA.
    """

    name: str
    vision: dict
    text: dict
    safety: dict
    batch: int
    pool: int
    repeats: int
    scale: float
    answer: int
    rank: int


CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape(  # LLaVA-1.5's proportions: a thirty-second of the width, half of the depth, a quarter of the tokens
            "tiny",
            {**CLIP_L, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 12, "num_attention_heads": 2}
            | {"image_size": 96, "patch_size": 8},
            {
                "hidden_size": 128,
                "intermediate_size": 344,
                "num_hidden_layers": 16,
                "num_attention_heads": 4,
                "vocab_size": 1024,
            },
            {"head_tokens": 16, "llm_tokens": 2, "projector_width": 32},
            batch=16,
            pool=48,
            repeats=4,
            scale=0.25,
            answer=64,
            rank=16,
        ),
        Shape(
            "7b",
            CLIP_L,
            {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
            | {"vocab_size": 32064},
            {},
            batch=8,
            pool=96,
            repeats=3,
            scale=1.0,
            answer=128,
            rank=256,
        ),
        Shape(
            "13b",
            CLIP_L,
            {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
            | {"vocab_size": 32064},
            {},
            batch=4,
            pool=48,
            repeats=3,
            scale=1.0,
            answer=128,
            rank=256,
        ),
    )
}


class Plain(SafeVLM):
    """The same base on the same path, without the safety modules' work: what they cost is the difference."""

    def _judge(self, features: Tensor, *_: Tensor) -> HeadOutput:
        return HeadOutput(None, None)


def build(shape: Shape, device: str, dtype: torch.dtype, kind: type[SafeVLM] = SafeVLM) -> SafeVLM:
    """A model of the shape with random weights; on "meta" without any."""
    processor = SafeProcessor.from_pretrained(BASE, SafetyConfig(**shape.safety).llm_tokens)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.vision),
        text_config=LlamaConfig(**shape.text, max_position_embeddings=2 * LONGEST),
        image_token_index=processor.image_token_id,
    )
    with torch.device(device):
        base = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        base.generation_config.eos_token_id = None  # answers of one length
        model = kind(base, processor, SafetyConfig(**shape.safety), Taxonomy.default())
    model.base.requires_grad_(False)
    return model


def lengths(shape: Shape, count: int, seed: int = 0) -> list[tuple[int, bool]]:
    """Tokens of the texts of rows, and whether there is an image.

    An assumption, made once and the same for all that is compared: most rows an image and 20 to 1,400 tokens, half below 180,
    the others, text alone, up to 2,048, half below 700.
    """
    draw, found = random.Random(seed), []
    for _ in range(count):
        image = draw.random() >= TEXT_ONLY
        middle, spread, most = (180, 0.9, 1400) if image else (700, 0.7, LONGEST)
        tokens = min(max(draw.lognormvariate(math.log(middle), spread), 20), most)
        found.append((max(8, round(tokens * shape.scale)), image))
    return found


def rows(
    shape: Shape, model: SafeVLM, sizes: list[tuple[int, bool]], tokens: bool = True, stored: bool = False
) -> list[dict]:
    """Rows as `ExchangeDataset` gives them, of random tokens and pixels; half of a text is its answer.

    Args: tokens: with the safety tokens. stored: features in place of pixels.
    """
    draw = torch.Generator().manual_seed(1)
    side, patches = shape.vision["image_size"], model.backbone.patches(model.config)
    made = []
    for number, (size, image) in enumerate(sizes):
        head = [1]
        if image:
            head += (model.processor.safety_ids if tokens else []) + [model.processor.image_token_id] * patches
        text = torch.randint(*WORDS, (size,), generator=draw)
        ids = torch.cat([torch.tensor(head), text])
        asked = len(head) + size // 2
        row = {
            "input_ids": ids,
            "labels": torch.where(torch.arange(len(ids)) < asked, IGNORE, ids),
            "question_mask": ((torch.arange(len(ids)) >= len(head)) & (torch.arange(len(ids)) < asked)).long(),
            "tiles": torch.ones(int(image), dtype=torch.long),
            "risk_type": torch.tensor(number % 7),
            "risk_level": torch.tensor(number % 4),
            "row": f"row {number}",
        }
        if stored:
            width = model.backbone.vision_width(model.config)
            row["features"] = torch.randn(int(image), patches, width, generator=draw).to(torch.bfloat16)
        elif image:
            row["pixel_values"] = torch.randn(1, 3, side, side, generator=draw)
        made.append(row)
    return made
