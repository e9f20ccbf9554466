"""The parts of riskworld's CLIP: processor, towers, and how images and texts pass them while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from data_recipes.riskworld.scenes import Scene
from train.experiments.riskworld_models.tower import augment, normalise, pixels

LENGTH = 77  # tokens of a text at most, as in CLIP
END = "<|endoftext|>"


def build_processor(base: Path) -> CLIPProcessor:
    """The base's image processor, and its vocabulary with CLIP's end token; letters become lower case, as in CLIP."""
    theirs = LlavaProcessor.from_pretrained(base)
    tokenizer = Tokenizer.from_str(theirs.tokenizer.backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens([END])  # the highest id: CLIP finds the end of a text by it
    ends = [(token, tokenizer.token_to_id(token)) for token in (theirs.tokenizer.bos_token, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{ends[0][0]} $A {END}", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=theirs.tokenizer.pad_token,
        bos_token=theirs.tokenizer.bos_token,
        eos_token=END,
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )
    return CLIPProcessor(image_processor=theirs.image_processor, tokenizer=fast)


def build_model(seed: int, processor: CLIPProcessor, vision: CLIPVisionConfig, width: int = 64) -> CLIPModel:
    """An untrained CLIP whose vision tower has one layer more than the base's.

    Args:
        width: of both projections.
    """
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    tower = {**vision.to_dict(), "num_hidden_layers": vision.num_hidden_layers + 1, "projection_dim": width}
    config = CLIPConfig(text_config=text.to_dict(), vision_config=tower, projection_dim=width)
    return CLIPModel(config)


def load_tower(model: CLIPModel, tower: CLIPVisionModel) -> None:
    """Copy the base's tower below the new layer, and freeze the copy."""
    missing, unexpected = model.vision_model.load_state_dict(tower.state_dict(), strict=False)
    top = f"encoder.layers.{tower.config.num_hidden_layers}."
    if unexpected or any(not name.startswith(top) for name in missing):
        raise RuntimeError(f"the base's tower does not fit: missing {missing}, unexpected {unexpected}")
    for name, parameter in model.vision_model.named_parameters():
        parameter.requires_grad_(name.startswith((top, "post_layernorm.")))


@torch.inference_mode()
def look(model: CLIPModel, scenes: Sequence[Scene], seed: int | None = None, batch: int = 250) -> Tensor:
    """What the frozen layers give, once for all steps: (B, 1 + P, V), bfloat16.

    Args:
        seed: to turn, blur and otherwise change half of the images; None for none.
    """
    vision, seen = model.vision_model, []
    generator = torch.Generator().manual_seed(seed or 0)
    for start in range(0, len(scenes), batch):
        images = torch.stack([pixels(scene.draw()) for scene in scenes[start : start + batch]]).float() / 255
        if seed is not None:
            images[1::2] = augment(images[1::2], generator)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = vision.pre_layrnorm(vision.embeddings(normalise(images)))
            for layer in vision.encoder.layers[:-1]:
                hidden = layer(hidden, attention_mask=None)
        seen.append(hidden.bfloat16())
    return torch.cat(seen).clone()


def project(model: CLIPModel, hidden: Tensor) -> Tensor:
    """Images as `look` gives them -> (B, width), of length 1."""
    return F.normalize(model.visual_projection(pool(model, hidden)), dim=-1)


def pool(model: CLIPModel, hidden: Tensor) -> Tensor:
    """The last layer, for the class token alone, which is all that a CLIP reads: (B, 1 + P, V) -> (B, V)."""
    vision = model.vision_model
    layer = vision.encoder.layers[-1]
    normed = layer.layer_norm1(hidden)
    heads = layer.self_attn.num_heads

    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, T, V / heads)

    query, key, value = (
        layer.self_attn.q_proj(normed[:, :1]),
        layer.self_attn.k_proj(normed),
        layer.self_attn.v_proj(normed),
    )
    mixed = (
        F.scaled_dot_product_attention(split(query), split(key), split(value)).transpose(1, 2).flatten(2)
    )  # (B, 1, V)
    token = hidden[:, :1] + layer.self_attn.out_proj(mixed)
    token = token + layer.mlp(layer.layer_norm2(token))
    return vision.post_layernorm(token[:, 0])


def read(model: CLIPModel, processor: CLIPProcessor, texts: Sequence[str]) -> Tensor:
    """Texts -> (B, width), of length 1."""
    inputs = processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    return F.normalize(model.get_text_features(**inputs).pooler_output.float(), dim=-1)
