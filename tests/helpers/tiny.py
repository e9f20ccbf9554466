"""Tiny random vision language models, built in memory: one for each family in BACKBONES."""

import json
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from safety_modules.config import SafetyConfig

CORPUS = [
    "USER: ASSISTANT: what colour is this picture? it is a red key. two blue stars, one green house.",
    "I cannot help with this. This exchange may involve private data of a person. Answer with care, and name the risk.",
    "politics illegal insults fairness privacy misleading clean safe 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ <>_/!?'",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
FAMILIES = ("llava", "llava_next")
VICUNA = (  # the layout of LLaVA-1.5's and -1.6-vicuna's templates: system text bare, images first
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] + ' ' }}"
    "{% else %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """LLaVA: as Llama's, spaces are ▁, one goes in front, unknown characters are bytes. LLaVA-NeXT: byte-level."""
    core = Tokenizer(models.BPE())
    if family == "llava":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS * 2, trainer)
    if family == "llava":
        learned = json.loads(core.to_str())["model"]
        vocab = learned["vocab"] | {f"<0x{i:02X}>": len(learned["vocab"]) + i for i in range(256)}
        merges = [tuple(merge) for merge in learned["merges"]]
        core.model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def base_folder(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a random base model of `family` with its processor."""
    torch.manual_seed(seed)
    tok = tokenizer(family)
    common = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    size = {"shortest_edge": 32}
    crop = {"height": 32, "width": 32}
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tok) + 5,  # more rows than tokens, as in llava-hf folders
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        initializer_range=0.3,  # large, so that differences show in greedy tokens
    )
    token = tok.convert_tokens_to_ids("<image>")
    if family == "llava":
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=token)
        processor = LlavaProcessor(
            CLIPImageProcessorPil(size=size, crop_size=crop), tok, chat_template=VICUNA, **common
        )
    else:
        grid = [[32, 64], [64, 32], [64, 64]]
        config = LlavaNextConfig(
            vision_config=vision, text_config=text, image_token_index=token, image_grid_pinpoints=grid
        )
        image = LlavaNextImageProcessorPil(size=size, crop_size=crop, image_grid_pinpoints=grid)
        processor = LlavaNextProcessor(image, tok, chat_template=VICUNA, **common)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.pad_token_id = tok.pad_token_id
    model.generation_config.eos_token_id = tok.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def safety_config(**changes) -> SafetyConfig:
    """Small modules."""
    values = {"head_tokens": 4, "llm_tokens": 4, "projector_width": 24, "projector_depth": 1, **changes}
    return SafetyConfig(**values)


def image(seed: int = 0, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """An image of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
