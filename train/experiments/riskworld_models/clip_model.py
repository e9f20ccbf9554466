"""The model of riskworld's CLIP: its processor, its towers, and the paths of images and texts through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from data_recipes.riskworld.scenes import Scene
from train.experiments.riskworld_models.processor import derive_tokenizer
from train.experiments.riskworld_models.tower import augment, draw, normalise

MAX_LENGTH = 77  # tokens of a text, as in CLIP
END = "<|endoftext|>"
WIDTH = 64  # of both projections
TEXT_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class RiskworldClip:
    """A CLIP and its processor; the vision tower is the base's, with one more layer on top."""

    model: CLIPModel
    processor: CLIPProcessor

    @classmethod
    def build(cls, base: Path, seed: int) -> RiskworldClip:
        """Untrained; the base's layers are frozen.

        Raises:
            RuntimeError: the base's tower has other weights than the layers below the new one.
        """
        tower = LlavaForConditionalGeneration.from_pretrained(base).model.vision_tower.eval()
        processor = build_processor(base)
        torch.manual_seed(seed)
        tokenizer, layers = processor.tokenizer, tower.config.num_hidden_layers
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=MAX_LENGTH,
            projection_dim=WIDTH,
            **TEXT_TOWER,
            **{name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
        )
        vision = {**tower.config.to_dict(), "num_hidden_layers": layers + 1, "projection_dim": WIDTH}
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=WIDTH))
        missing, unexpected = model.vision_model.load_state_dict(tower.state_dict(), strict=False)
        top = f"encoder.layers.{layers}."
        if unexpected or any(not name.startswith(top) for name in missing):
            raise RuntimeError(f"the base's tower does not fit: missing {missing}, unexpected {unexpected}")
        for name, parameter in model.vision_model.named_parameters():
            parameter.requires_grad_(name.startswith((top, "post_layernorm.")))
        return cls(model, processor)

    @torch.inference_mode()
    def encode(self, scenes: Sequence[Scene], seed: int | None = None, batch: int = 250) -> Tensor:
        """Output of the frozen layers, computed once for all steps: (B, 1 + P, V), bfloat16.

        Args:
            seed: of the augmentation of every second image; None for none.
        """
        vision, features = self.model.vision_model, []
        generator = torch.Generator().manual_seed(seed or 0)
        for start in range(0, len(scenes), batch):
            images = draw(scenes[start : start + batch])
            if seed is not None:
                images[1::2] = augment(images[1::2], generator)
            with torch.autocast("cpu", torch.bfloat16):
                hidden = vision.pre_layrnorm(vision.embeddings(normalise(images)))
                for layer in vision.encoder.layers[:-1]:
                    hidden = layer(hidden, attention_mask=None)
            features.append(hidden.bfloat16())
        return torch.cat(features)

    def class_token(self, features: Tensor) -> Tensor:
        """The last layer's class token, which is all that a CLIP uses of it: (B, 1 + P, V) -> (B, V)."""
        layer = self.model.vision_model.encoder.layers[-1]
        attention, normed = layer.self_attn, layer.layer_norm1(features)

        def split(rows: Tensor) -> Tensor:
            return rows.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (B, heads, T, V / heads)

        query, key, value = attention.q_proj(normed[:, :1]), attention.k_proj(normed), attention.v_proj(normed)
        mixed = F.scaled_dot_product_attention(split(query), split(key), split(value))  # (B, heads, 1, V / heads)
        token = features[:, :1] + attention.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, 1, V)
        token = token + layer.mlp(layer.layer_norm2(token))
        return self.model.vision_model.post_layernorm(token[:, 0])

    def embed_images(self, features: Tensor) -> Tensor:
        """Features of `encode` -> embeddings (B, WIDTH) of length 1."""
        return F.normalize(self.model.visual_projection(self.class_token(features.float())), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> embeddings (B, WIDTH) of length 1."""
        inputs = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        return F.normalize(self.model.get_text_features(**inputs).pooler_output.float(), dim=-1)


def build_processor(base: Path) -> CLIPProcessor:
    """The base's image processor, and its vocabulary with CLIP's end token; texts become lower case, as in CLIP."""
    base_processor = LlavaProcessor.from_pretrained(base)
    tokenizer = Tokenizer.from_str(base_processor.tokenizer.backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens([END])  # the highest id: CLIP finds the end of a text by it
    bos = base_processor.tokenizer.bos_token
    ends = [(token, tokenizer.token_to_id(token)) for token in (bos, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A {END}", special_tokens=ends)
    tokenizer = derive_tokenizer(base_processor.tokenizer, tokenizer, eos_token=END, model_max_length=MAX_LENGTH)
    return CLIPProcessor(image_processor=base_processor.image_processor, tokenizer=tokenizer)
