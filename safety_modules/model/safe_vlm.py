"""SafeVLM: a Hugging Face vision language model with the safety modules attached."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.model.backbones import BACKBONES
from safety_modules.model.head import HeadOutput
from safety_modules.model.load_base import load_base
from safety_modules.model.modules import SafeOutput, SafetyModules
from safety_modules.model.packing import packed_arguments
from safety_modules.model.quantization import Quantization
from safety_modules.model.tokens import TokenEmbedding
from safety_modules.prompt.head_inputs import HeadInputs
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.taxonomy import Taxonomy, nearest


class _Enough(Exception):
    """Ends a pass of the base whose further results are not needed."""


class SafeVLM(nn.Module):
    """A base model of transformers, untouched, with `SafetyModules` beside it.

    `base` is the stock model: its `forward` and `generate` are used, not copied. `safety` reads the features at the input
    of the base's own projector (a hook there), and gives the ids `<safety_0>`... their vectors (a hook on the embedding).
    """

    accepts_loss_kwargs = True  # Trainer then counts the supervised tokens of the whole step

    def __init__(
        self, base: PreTrainedModel, processor: SafeProcessor, config: SafetyConfig, taxonomy: Taxonomy
    ) -> None:
        """Args: base: of a family in BACKBONES. processor: made with `config.llm_tokens`."""
        super().__init__()
        if base.config.model_type not in BACKBONES:
            raise ConfigError(
                f"base model type {base.config.model_type!r}: {nearest(base.config.model_type, list(BACKBONES))}"
            )
        self.backbone = BACKBONES[base.config.model_type]
        self.safety_config, self.taxonomy, self.processor = config, taxonomy, processor
        self.base = base
        self.safety = SafetyModules(
            config, taxonomy, self.backbone.vision_width(base.config), self.backbone.language_width(base.config)
        ).to(base.device)
        self._captured: list[Tensor] | None = None
        self._stop = False  # at the base's projector, once its input is captured
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
            base: a model, or the folder or hub name of one; a model must know where its processor is (`name_or_path`).
            config: the modules' shape; the paper's by default.
            taxonomy: the categories; the paper's by default.
            dtype: of the base's weights, where it is loaded here. The modules are fp32.
            language_model: False leaves it out of memory, where the base is loaded here: for the head alone.
            quantize: how the language model's blocks are held, where the base is loaded here; None: as they are.

        Raises:
            ConfigError: the family is unknown, or a width does not fit.
        """
        config, taxonomy = config or SafetyConfig(), taxonomy or Taxonomy.default()
        model = base if isinstance(base, PreTrainedModel) else load_base(base, dtype, language_model, quantize)
        return cls(model, SafeProcessor.from_pretrained(model.name_or_path, config.llm_tokens), config, taxonomy)

    @property
    def config(self):  # noqa: ANN201 - the base's own class
        """The base's config: what Trainer and DeepSpeed read widths from."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.base.device

    def gradient_checkpointing_enable(self, *args: object, **options: object) -> None:
        """Trade time for memory in the base; called by Trainer, whose arguments differ between versions."""
        self.base.gradient_checkpointing_enable(*args, **options)
        self.base.disable_input_require_grads()  # of the frozen tower's embedding too; only the reentrant kind needs them

    def activation_checkpointing_enable(self, *args: object, **options: object) -> None:
        """The newer name of `gradient_checkpointing_enable`."""
        self.base.activation_checkpointing_enable(*args, **options)
        self.base.disable_input_require_grads()

    def tie_weights(self) -> None:
        """Tie what the base ties; called by Trainer after it has loaded a checkpoint."""
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
            head_inputs: what the head reads, from `SafeProcessor.collate`.
            input_ids, attention_mask: (B, T); None where the head alone is to judge: `logits` is then None.
            position_ids: (1, T), and segments, the lengths of the rows: where the rows are packed.
            keep: (M,), the positions whose logits are wanted; None for all.
            pixel_values: of all images of the batch, as the base wants them; None without any.
            image_sizes: (n, 2), LLaVA-NeXT only.
            features: (N, P, V) from `vision_features`, in place of pixel_values: the vision tower is not run.
        """
        if input_ids is None:
            features = self.vision_features(pixel_values, image_sizes) if features is None else features
            return SafeOutput(None, *self._judge(features, head_inputs))
        # Embedding, images, blocks: the order of the base's own forward, and the same on every process of ZeRO-3
        embeds = self.base.get_input_embeddings()(input_ids)  # (B, T, D)
        features, tokens = self._encode_images(pixel_values, image_sizes, features)
        embeds = self._merge_image_features(embeds, input_ids, tokens)
        rows = (
            {"attention_mask": attention_mask}
            if segments is None
            else packed_arguments(self.base, position_ids, segments)
        )
        wanted = {} if keep is None else {"logits_to_keep": keep}
        logits = self.base(inputs_embeds=embeds, use_cache=False, **rows, **wanted).logits
        return SafeOutput(logits, *self._judge(features, head_inputs))

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
        return self._judge(features, head_inputs)

    @torch.no_grad()
    def vision_features(self, pixel_values: Tensor | None, image_sizes: Tensor | None = None) -> Tensor:
        """What the head reads of images: (N, P, V), the input of the base's projector, by a pass of the vision tower alone."""
        with self._capturing() as captured:
            if pixel_values is not None:
                with suppress(_Enough):
                    self._stop = True
                    self.base.get_image_features(**_images(pixel_values, image_sizes))
        return torch.cat(captured) if captured else self._no_features()

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
        """The base's own `generate`; placeholders are never sampled.

        Args: features: (N, P, V) from `vision_features`, in place of pixel_values: the vision tower is not run again.

        Returns:
            (B, T') new tokens only.
        """
        settings = {"max_new_tokens": max_new_tokens, "do_sample": do_sample, "suppress_tokens": self.placeholders()}
        read = self.prepare_generate_inputs(input_ids, pixel_values, image_sizes, features)
        output = self.base.generate(**read, attention_mask=attention_mask, **settings)
        return output if "inputs_embeds" in read else output[:, input_ids.shape[1] :]

    @torch.no_grad()
    def prepare_generate_inputs(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the base's `generate` is given of a prompt: ids and images, or, with features, `inputs_embeds` (B, T, D)."""
        if features is not None and len(features):
            embeds = self.base.get_input_embeddings()(input_ids)
            return {
                "inputs_embeds": self._merge_image_features(
                    embeds, input_ids, self._encode_images(None, image_sizes, features)[1]
                )
            }
        return {"input_ids": input_ids, **_images(pixel_values, image_sizes if pixel_values is not None else None)}

    def placeholders(self) -> list[int]:
        """Ids that no answer may contain and that the base's vocabulary can score: the image's and the safety tokens'."""
        vocabulary = self.base.get_output_embeddings().weight.shape[0]
        return [i for i in (self.processor.image_token_id, *self.processor.safety_ids) if i < vocabulary]

    @contextmanager
    def without_adapters(self):  # noqa: ANN201 - a context manager's generator
        """Switch off LoRA layers that are not merged: the language model is then the base's."""
        layers = [module for module in self.base.modules() if hasattr(module, "lora_A")]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @contextmanager
    def _capturing(self):  # noqa: ANN202 - a context manager's generator
        """Collect what goes into the base's projector."""
        self._captured = []
        try:
            yield self._captured
        finally:
            self._captured, self._stop = None, False

    def _capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._captured is not None:
            self._captured.append(args[0])
            if self._stop:
                raise _Enough  # the base's projector, which comes next, is not needed

    def _encode_images(
        self, pixel_values: Tensor | None, image_sizes: Tensor | None, features: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the head reads of the images, (N, P, V), and what the language model reads, (M, D), or None without any.

        ZeRO-3 collects the weights of each layer from all processes when it runs, so all must run the same layers: there, a
        batch without images gets a blank one, which nobody reads.
        """
        blank = pixel_values is None and (features is None or not len(features))
        if blank:
            if not is_deepspeed_zero3_enabled():
                return self._no_features(), None
            pixel_values, image_sizes = self.backbone.blank(self.config, self.device)
        if features is not None and not blank:
            features = features.to(self.base.dtype)
            return features, self.backbone.project(self.base, features, image_sizes)
        with self._capturing() as captured:
            seen = self.base.get_image_features(**_images(pixel_values, image_sizes))
        features = torch.cat(captured)
        return features[:0] if blank else features, torch.cat(list(seen.pooler_output))

    def _merge_image_features(self, embeds: Tensor, input_ids: Tensor, tokens: Tensor | None) -> Tensor:
        """Put what the language model reads of images, (M, D), into their places in (B, T, D)."""
        if tokens is None:
            return embeds
        places = (input_ids == self.processor.image_token_id).unsqueeze(-1)
        return embeds.masked_scatter(places, tokens.to(embeds.dtype))

    def _judge(self, features: Tensor, head_inputs: HeadInputs) -> HeadOutput:
        """The modules' scores of features (N, P, V); the head's loss leaves the embeddings of the questions as they are."""
        dtype = self.safety.head.type_layer.weight.dtype
        question_ids, first_ids = head_inputs.question_ids, head_inputs.first_ids
        with torch.no_grad():
            flat = self.base.get_input_embeddings()(torch.cat([question_ids.flatten(), first_ids])).to(dtype)
        text, first = flat.split([question_ids.numel(), len(first_ids)])
        text = text.unflatten(0, question_ids.shape)  # (R, Q, D)
        return self.safety(features.to(dtype), text, head_inputs.question_mask, first, head_inputs.units)

    def _no_features(self) -> Tensor:
        """(0, P, V) for a batch without images."""
        width = self.backbone.vision_width(self.config)
        return torch.zeros(0, self.backbone.patches(self.config), width, device=self.device)


def _images(pixel_values: Tensor | None, image_sizes: Tensor | None) -> dict[str, Tensor]:
    """The base's image arguments, without those that are absent."""
    given = {"pixel_values": pixel_values, "image_sizes": image_sizes}
    return {name: value for name, value in given.items() if value is not None}
