"""SafeVLM: a Hugging Face vision language model with the safety modules attached."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import ModelOutput

from safety_modules.backbones import BACKBONES
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.head import HeadOutput, SafetyHead
from safety_modules.processing import SafeProcessor
from safety_modules.projector import build_projector
from safety_modules.taxonomy import Taxonomy, nearest
from safety_modules.tokens import SafetyTokens, TokenEmbedding


@dataclass
class SafeOutput(ModelOutput):
    """`logits` (B, T, vocabulary), `type_logits` (B, types), `level_logits` (B, levels)."""

    logits: Tensor | None = None
    type_logits: Tensor | None = None
    level_logits: Tensor | None = None


class SafetyModules(nn.Module):
    """All that is trained in stage 1: safety projector, two sets of safety tokens, safety head.

    Source: PSA-VLM supplement A. Widths follow the base; several pictures of one exchange are judged one by one with the
    question, and the riskiest counts (the paper has one picture in each exchange).
    """

    def __init__(self, config: SafetyConfig, taxonomy: Taxonomy, vision_width: int, language_width: int) -> None:
        """Args: vision_width: V. language_width: D."""
        super().__init__()
        self.projector = build_projector(config, vision_width, language_width)
        self.head_tokens = SafetyTokens(config.head_tokens, language_width)
        self.llm_tokens = SafetyTokens(config.llm_tokens, language_width)
        self.head = SafetyHead(config, language_width, len(taxonomy.types), len(taxonomy.levels))
        self.clean_index = taxonomy.clean_index

    def forward(self, features: Tensor | None, owner: Tensor, text: Tensor, text_mask: Tensor, first: Tensor) -> HeadOutput:
        """Judge a batch of exchanges.

        Args:
            features: (N, P, V) of all pictures of the batch, N from 0.
            owner: (N,), the exchange of each picture, ascending.
            text: (B, T, D), embeddings of the questions. text_mask: (B, T).
            first: (B, D), embedding of each text's first position.

        Returns:
            Scores (B, types) and (B, levels).
        """
        rows = len(text)
        # Without a picture the projector still takes part (times zero), so that every rank has the same graph.
        seen = self.projector(features if len(features) else features.new_zeros(1, *features.shape[1:]))  # (N, P', D)
        bare = torch.ones(rows, dtype=torch.bool, device=owner.device).index_fill(0, owner, False)  # (B,)
        alone = bare.nonzero().squeeze(1)  # exchanges without a picture
        unit = torch.cat([owner, alone])  # (U,) the exchange of each unit to judge
        blank = seen[:1].expand(len(alone), -1, -1) * 0.0
        views = torch.cat([seen[: len(owner)], blank])  # (U, P', D)
        there = torch.arange(len(unit), device=owner.device) < len(owner)  # (U,)
        tokens = self.head_tokens.batch(len(unit)).to(views.dtype)  # (U, K, D)
        mask = torch.cat([there.new_ones(tokens.shape[:2]), there[:, None].expand(-1, views.shape[1])], dim=1)
        keys = torch.cat([tokens, views], dim=1)  # (U, K + P', D)
        scores = self.head(keys, mask, text[unit], text_mask[unit], first[unit])
        return self._riskiest(scores, unit, rows)

    def _riskiest(self, scores: HeadOutput, unit: Tensor, rows: int) -> HeadOutput:
        """The unit of each exchange with the highest odds against clean: (U, ...) -> (B, ...)."""
        if len(unit) == rows:  # one unit in each exchange: only put them in order
            order = unit.argsort()
            return HeadOutput(scores.type_logits[order], scores.level_logits[order])
        logits = scores.type_logits.detach().float()
        clean = logits[:, self.clean_index]
        risky = logits.index_fill(1, torch.tensor(self.clean_index, device=unit.device), -torch.inf).logsumexp(1)
        odds = (
            (risky - clean).expand(rows, -1).masked_fill(unit != torch.arange(rows, device=unit.device).unsqueeze(1), -torch.inf)
        )  # (B, U)
        best = odds.argmax(1)  # (B,)
        return HeadOutput(scores.type_logits[best], scores.level_logits[best])


class SafeVLM(nn.Module):
    """A base model of transformers, untouched, with `SafetyModules` beside it.

    `base` is the stock model: its `forward` and `generate` are used, not copied. `safety` reads the features at the input
    of the base's own projector (a hook there), and gives the ids `<safety_0>`... their vectors (a hook on the embedding).
    """

    accepts_loss_kwargs = True  # Trainer then counts the supervised tokens of the whole step

    def __init__(self, base: PreTrainedModel, processor: SafeProcessor, config: SafetyConfig, taxonomy: Taxonomy) -> None:
        """Args: base: of a family in BACKBONES. processor: made with `config.llm_tokens`."""
        super().__init__()
        if base.config.model_type not in BACKBONES:
            raise ConfigError(f"base model type {base.config.model_type!r}: {nearest(base.config.model_type, list(BACKBONES))}")
        self.backbone = BACKBONES[base.config.model_type]
        self.safety_config, self.taxonomy, self.processor = config, taxonomy, processor
        self.base = base
        self.safety = SafetyModules(
            config, taxonomy, self.backbone.vision_width(base.config), self.backbone.language_width(base.config)
        ).to(base.device)
        self._captured: list[Tensor] | None = None
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
    ) -> SafeVLM:
        """New safety modules on a base model.

        Args:
            base: a model, or the folder or hub name of one; a model must know where its processor is (`name_or_path`).
            config: the modules' shape; the paper's by default.
            taxonomy: the categories; the paper's by default.
            dtype: of the base's weights, where it is loaded here. The modules are fp32.

        Raises:
            ConfigError: the family is unknown, or a width does not fit.
        """
        config, taxonomy = config or SafetyConfig(), taxonomy or Taxonomy.default()
        model = base if isinstance(base, PreTrainedModel) else load_base(base, dtype)
        return cls(model, SafeProcessor.from_pretrained(model.name_or_path, config.llm_tokens), config, taxonomy)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype | str = "auto", base: str | Path | None = None) -> SafeVLM:
        """Load what training or export wrote; see `checkpoint.load`."""
        from safety_modules import checkpoint  # checkpoint builds SafeVLM: the import would be a circle at the top

        return checkpoint.load(folder, dtype=dtype, base=base)

    @property
    def config(self):  # noqa: ANN201 - the base's own class
        """The base's config: what Trainer and DeepSpeed read widths from."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.base.device

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Trade time for memory in the base; called by Trainer."""
        self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def tie_weights(self) -> None:
        """Tie what the base ties; called by Trainer after it has loaded a checkpoint."""
        self.base.tie_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        question_mask: Tensor,
        images_per_row: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
    ) -> SafeOutput:
        """Language-model logits and the head's scores, with one pass of the vision tower.

        Args:
            input_ids, attention_mask, question_mask: (B, T), from `SafeProcessor.collate`.
            images_per_row: (B,).
            pixel_values: of all images of the batch, as the base wants them; None without any.
            image_sizes: (n, 2), LLaVA-NeXT only.
        """
        with self._capturing() as captured:
            output = self.base(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=False,
                **_pictures(pixel_values, image_sizes),
            )
        scores = self._judge(captured, input_ids, attention_mask, question_mask, images_per_row, image_sizes)
        return SafeOutput(output.logits, scores.type_logits, scores.level_logits)

    @torch.no_grad()
    def assess(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        question_mask: Tensor,
        images_per_row: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
    ) -> HeadOutput:
        """The head's scores without a forward of the language model; arguments as in `forward`."""
        with self._capturing() as captured:
            if pixel_values is not None:
                self.base.get_image_features(**_pictures(pixel_values, image_sizes))
        return self._judge(captured, input_ids, attention_mask, question_mask, images_per_row, image_sizes)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        max_new_tokens: int = 256,
        do_sample: bool = False,
    ) -> Tensor:
        """The base's own `generate`; placeholders are never sampled.

        Returns:
            (B, T') new tokens only.
        """
        output = self.base.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            suppress_tokens=self.placeholders(),
            **_pictures(pixel_values, image_sizes),
        )
        return output[:, input_ids.shape[1] :]

    def placeholders(self) -> list[int]:
        """Ids that no answer may contain and that the base's vocabulary can score: the image's and the safety tokens'."""
        vocabulary = self.base.get_output_embeddings().weight.shape[0]
        return [i for i in (self.processor.image_token_id, *self.processor.safety_ids) if i < vocabulary]

    @contextmanager
    def _capturing(self):  # noqa: ANN202 - a context manager's generator
        """Collect what goes into the base's projector."""
        self._captured = []
        try:
            yield self._captured
        finally:
            self._captured = None

    def _capture(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._captured is not None:
            self._captured.append(args[0])

    def _judge(
        self,
        captured: list[Tensor],
        input_ids: Tensor,
        attention_mask: Tensor,
        question_mask: Tensor,
        images_per_row: Tensor,
        image_sizes: Tensor | None,
    ) -> HeadOutput:
        """The modules' verdict on captured features (N, P, V) and the questions."""
        dtype = self.safety.head.type_layer.weight.dtype
        images = int(images_per_row.sum())
        tiles = torch.tensor(self.backbone.tiles(self.config, images, image_sizes), dtype=torch.long, device=input_ids.device)
        owner = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(images_per_row)  # (images,)
        owner = owner.repeat_interleave(tiles)  # (N,)
        features = torch.cat(captured) if captured else self._no_features(input_ids.device, dtype)
        ids, mask = gather_marked(input_ids, question_mask)
        start = input_ids.gather(1, attention_mask.argmax(1, keepdim=True))  # (B, 1) the first position that is no padding
        embed = self.base.get_input_embeddings()
        text = embed(torch.cat([ids, start], dim=1)).to(dtype)  # (B, T + 1, D)
        return self.safety(features.to(dtype), owner, text[:, :-1], mask, text[:, -1])

    def _no_features(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(0, P, V) for a batch without pictures."""
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return torch.zeros(0, patches, self.backbone.vision_width(self.config), device=device, dtype=dtype)


def gather_marked(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the marked tokens of each row to the front, and cut the rest.

    Args: ids, mask: (B, T).
    Returns: ids (B, Q) and mask (B, Q), Q the most marks in a row.
    """
    width = int(mask.sum(1).max())
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, :width]  # (B, Q)
    return ids.gather(1, order), mask.gather(1, order)


def load_base(base: str | Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """A stock model of transformers; safetensors only, no remote code."""
    return AutoModelForImageTextToText.from_pretrained(base, dtype=dtype, use_safetensors=True, trust_remote_code=False)


def _pictures(pixel_values: Tensor | None, image_sizes: Tensor | None) -> dict[str, Tensor]:
    """The base's picture arguments, without those that are absent."""
    given = {"pixel_values": pixel_values, "image_sizes": image_sizes}
    return {name: value for name, value in given.items() if value is not None}
