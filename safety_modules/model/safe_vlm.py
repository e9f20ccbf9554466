"""SafeVLM: a Hugging Face vision language model with the safety modules attached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.errors import nearest
from safety_modules.model.backbones import BACKBONES
from safety_modules.model.head import HeadOutput
from safety_modules.model.load_base import load_base
from safety_modules.model.modules import SafeOutput, SafetyModules
from safety_modules.model.packing import packed_arguments
from safety_modules.model.quantization import Quantization
from safety_modules.model.tokens import TokenEmbedding
from safety_modules.prompt.head_inputs import HeadInputs
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.taxonomy import Taxonomy


class _FeaturesCaptured(Exception):
    """Ends a pass of the vision tower once its features are captured."""


class SafeVLM(nn.Module):
    """A stock model of transformers, `base`, with `SafetyModules` beside it.

    The base's own `forward` and `generate` are used, not copied. The safety modules read the features at the input of
    the base's projector (a hook there), and give the ids `<safety_0>`... their vectors (a hook on the embedding).
    """

    accepts_loss_kwargs = True  # Trainer then counts the supervised tokens of the whole step

    def __init__(
        self, base: PreTrainedModel, processor: SafeProcessor, config: SafetyConfig, taxonomy: Taxonomy
    ) -> None:
        """Args: base: of a family in BACKBONES. processor: with `config.llm_tokens` safety tokens."""
        super().__init__()
        family = base.config.model_type
        if family not in BACKBONES:
            raise ConfigError(f"base model type {family!r}: {nearest(family, BACKBONES)}")
        self.backbone = BACKBONES[family]
        self.safety_config, self.taxonomy, self.processor = config, taxonomy, processor
        self.base = base
        self.safety = SafetyModules(config, taxonomy, *self.widths).to(base.device)
        self._captured: list[Tensor] | None = None  # inputs of the base's projector, while they are wanted
        self._stop_after_capture = False
        base.get_submodule(self.backbone.projector).register_forward_pre_hook(self._capture)
        first = processor.safety_ids[0] if processor.safety_ids else 0
        TokenEmbedding(self.safety.llm_tokens, first).attach(base.get_input_embeddings())

    @classmethod
    def attach(
        cls,
        base: PreTrainedModel | str | Path,
        config: SafetyConfig | None = None,
        taxonomy: Taxonomy | None = None,
        dtype: torch.dtype | str = "auto",
        language_model: bool = True,
        quantize: Quantization | None = None,
    ) -> SafeVLM:
        """New safety modules on a base model.

        Args:
            base: a folder or hub name, or a loaded model whose `name_or_path` is where its processor is.
            config: the modules' shape; the paper's by default.
            taxonomy: the categories; the paper's by default.
            dtype, language_model, quantize: as in `load_base`, unless `base` is a loaded model. The modules are fp32.

        Raises:
            ConfigError: the family is unknown, or a width does not fit.
        """
        config, taxonomy = config or SafetyConfig(), taxonomy or Taxonomy.default()
        model = base if isinstance(base, PreTrainedModel) else load_base(base, dtype, language_model, quantize)
        place = cast(str, model.name_or_path)  # None for no loaded model
        return cls(model, SafeProcessor.from_pretrained(place, config.llm_tokens), config, taxonomy)

    @property
    def config(self) -> PretrainedConfig:
        """The base's config: what Trainer and DeepSpeed read widths from."""
        return self.base.config

    @property
    def widths(self) -> tuple[int, int]:
        """V and D: of the vision tower's features and of the language model."""
        return self.backbone.vision_width(self.config), self.backbone.language_width(self.config)

    @property
    def device(self) -> torch.device:
        """The base's device."""
        return self.base.device

    def gradient_checkpointing_enable(self, *args: Any, **options: Any) -> None:
        """Trade time for memory in the base; called by Trainer, whose arguments differ between versions."""
        self.base.gradient_checkpointing_enable(*args, **options)
        self.base.disable_input_require_grads()  # only reentrant checkpointing needs them; they reach the frozen tower

    def activation_checkpointing_enable(self, *args: Any, **options: Any) -> None:
        """The newer name of `gradient_checkpointing_enable`."""
        self.base.activation_checkpointing_enable(*args, **options)
        self.base.disable_input_require_grads()

    def tie_weights(self) -> None:
        """Tie the base's weights; called by Trainer after loading a checkpoint."""
        self.base.tie_weights()

    def forward(
        self,
        head_inputs: HeadInputs,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segments: Sequence[int] | None = None,
        keep: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        features: Tensor | None = None,
    ) -> SafeOutput:
        """Language-model logits and the head's scores, with one pass of the vision tower.

        Args:
            head_inputs: see `SafeProcessor.collate`.
            input_ids, attention_mask: (B, T); None to run the head alone: `logits` is then None.
            position_ids, segments: (1, T) and the rows' lengths, for packed rows.
            keep: (M,), the positions whose logits are wanted; None for all.
            pixel_values: of all images of the batch, as the base takes them; None without any.
            image_sizes: (n, 2), LLaVA-NeXT only.
            features: (N, P, V) from `vision_features`, in place of pixel_values: the vision tower is not run.
        """
        if input_ids is None:
            features = self.vision_features(pixel_values, image_sizes) if features is None else features
            return SafeOutput(None, *self.score(features, head_inputs))
        # Embedding, images, blocks: the order of the base's own forward, and the same on every process of ZeRO-3
        embeds = self.base.get_input_embeddings()(input_ids)  # (B, T, D)
        features, image_embeds = self._encode_images(pixel_values, image_sizes, features)
        embeds = self._merge_image_features(embeds, input_ids, image_embeds)
        arguments: dict[str, Any] = {"attention_mask": attention_mask}
        if segments is not None:
            if position_ids is None:
                raise ValueError("packed rows need their positions; give position_ids with segments")
            arguments = packed_arguments(self.base, position_ids, segments)
        if keep is not None:
            arguments["logits_to_keep"] = keep
        logits = self.base(inputs_embeds=embeds, use_cache=False, **arguments).logits
        return SafeOutput(logits, *self.score(features, head_inputs))

    @torch.no_grad()
    def assess(
        self,
        head_inputs: HeadInputs,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        features: Tensor | None = None,
    ) -> HeadOutput:
        """The head's scores without a forward of the language model; arguments as in `forward`."""
        features = self.vision_features(pixel_values, image_sizes) if features is None else features
        return self.score(features, head_inputs)

    def score(self, features: Tensor, head_inputs: HeadInputs) -> HeadOutput:
        """The head's scores of features (N, P, V); its loss does not train the embeddings of the questions."""
        dtype = self.safety.head.type_layer.weight.dtype
        question_ids, first_ids = head_inputs.question_ids, head_inputs.first_ids
        with torch.no_grad():
            flat = self.base.get_input_embeddings()(torch.cat([question_ids.flatten(), first_ids])).to(dtype)
        text, first = flat.split([question_ids.numel(), len(first_ids)])
        text = text.unflatten(0, question_ids.shape)  # (R, Q, D)
        return self.safety(features.to(dtype), text, head_inputs.question_mask, first, head_inputs.units)

    @torch.no_grad()
    def vision_features(self, pixel_values: Tensor | None, image_sizes: Tensor | None = None) -> Tensor:
        """The head's features of images, (N, P, V): the input of the base's projector. Runs the vision tower alone."""
        with self._capturing() as captured:
            if pixel_values is not None:
                with suppress(_FeaturesCaptured):
                    self._stop_after_capture = True
                    self._image_features(pixel_values, image_sizes)
        if captured:
            return torch.cat(captured)
        return torch.zeros(0, self.backbone.patches(self.config), self.widths[0], device=self.device)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        features: Tensor | None = None,
        max_new_tokens: int = 256,
        do_sample: bool = False,
    ) -> Tensor:
        """The base's own `generate`, without the placeholder ids.

        Args: features: (N, P, V) from `vision_features`, in place of pixel_values: the vision tower is not run again.

        Returns:
            (B, T') new tokens only.
        """
        settings = {"max_new_tokens": max_new_tokens, "do_sample": do_sample, "suppress_tokens": self.placeholders()}
        inputs = self.prepare_generate_inputs(input_ids, pixel_values, image_sizes, features)
        generate = cast(Any, self.base).generate  # which transformers' class of all models lacks
        output = generate(**inputs, attention_mask=attention_mask, **settings)
        return output if "inputs_embeds" in inputs else output[:, input_ids.shape[1] :]

    @torch.no_grad()
    def prepare_generate_inputs(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """A prompt for the base's `generate`: ids and images, or, with features, `inputs_embeds` (B, T, D)."""
        if features is not None and len(features):
            embeds = self.base.get_input_embeddings()(input_ids)
            _, image_embeds = self._encode_images(None, image_sizes, features)
            return {"inputs_embeds": self._merge_image_features(embeds, input_ids, image_embeds)}
        return {"input_ids": input_ids, **_image_arguments(pixel_values, image_sizes)}

    def placeholders(self) -> list[int]:
        """Ids of the image and safety tokens that the base could generate; no answer may contain them."""
        output_layer = self.base.get_output_embeddings()
        if isinstance(output_layer, nn.Identity):
            raise ConfigError("the model was loaded with language_model=False, so it cannot answer; load it with True")
        vocabulary = output_layer.weight.shape[0]
        return [i for i in (self.processor.image_token_id, *self.processor.safety_ids) if i < vocabulary]

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Switch off LoRA layers that are not merged: the language model is then the base's."""
        layers: list[Any] = [module for module in self.base.modules() if hasattr(module, "lora_A")]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @contextmanager
    def _capturing(self) -> Iterator[list[Tensor]]:
        """Collect the inputs of the base's projector."""
        self._captured = []
        try:
            yield self._captured
        finally:
            self._captured, self._stop_after_capture = None, False

    def _image_features(self, pixel_values: Tensor | None, image_sizes: Tensor | None) -> Any:
        """The output of the base's `get_image_features`, which transformers' class of all models lacks."""
        return cast(Any, self.base).get_image_features(**_image_arguments(pixel_values, image_sizes))

    def _capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._captured is not None:
            self._captured.append(args[0])
            if self._stop_after_capture:
                raise _FeaturesCaptured

    def _encode_images(
        self, pixel_values: Tensor | None, image_sizes: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The head's features of the images, (N, P, V), and the language model's embeddings of them, (M, D), or None.

        ZeRO-3 gathers the weights of each layer from all processes when it runs, so all must run the same layers:
        there, a batch without images encodes a blank one, whose features are dropped.
        """
        blank = pixel_values is None and (features is None or not len(features))
        if blank:
            if not is_deepspeed_zero3_enabled():
                return self.vision_features(None), None
            pixel_values, image_sizes = self.backbone.blank(self.config, self.device)
        elif features is not None:
            features = features.to(self.base.dtype)
            return features, self.backbone.project(self.base, features, image_sizes)
        with self._capturing() as captured:
            encoded = self._image_features(pixel_values, image_sizes)
        features = torch.cat(captured)
        return features[:0] if blank else features, torch.cat(list(encoded.pooler_output))

    def _merge_image_features(self, embeds: Tensor, input_ids: Tensor, image_embeds: Tensor | None) -> Tensor:
        """Put image embeddings (M, D) in the places of the image tokens of (B, T, D)."""
        if image_embeds is None:
            return embeds
        is_image = (input_ids == self.processor.image_token_id).unsqueeze(-1)
        return embeds.masked_scatter(is_image, image_embeds.to(embeds.dtype))


def _image_arguments(pixel_values: Tensor | None, image_sizes: Tensor | None) -> dict[str, Tensor]:
    """The base's image arguments; none without an image."""
    if pixel_values is None:
        return {}
    return {"pixel_values": pixel_values, **({} if image_sizes is None else {"image_sizes": image_sizes})}
