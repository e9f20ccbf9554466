"""MetaModel: the model of a stage with shapes and dtypes but no weights, so that any machine can count it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from safety_modules.checkpoints.format import ADAPTER, read_meta, read_taxonomy
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.taxonomy import Taxonomy
from train.build import add_lora
from train.config import TrainConfig
from train.loop.checks import check_rules
from train.loop.param_groups import param_groups
from train.planning.memory import Weights, optimizer_bytes, quantised_bits

PARTS = {  # the first that a parameter's name starts with, or holds
    "LoRA": ("lora_",),
    "vision tower": ("base.model.vision_tower.",),
    "base projector": ("base.model.multi_modal_projector.", "base.model.image_newline"),
    "output layer": ("base.lm_head.",),
    "language model": ("base.model.language_model.",),
    "safety projector": ("safety.projector.",),
    "head tokens": ("safety.head_tokens.",),
    "language-model tokens": ("safety.llm_tokens.",),
    "head": ("safety.head.",),
}
BLOCKS = ".language_model.layers."


@dataclass(frozen=True)
class Count:
    """Parameters of one part and dtype, trained or frozen. `bytes` are those of the weights as they are loaded."""

    part: str
    dtype: str
    trained: bool
    parameters: int
    bytes: int


@dataclass(frozen=True)
class MetaModel:
    """A stage's model on the meta device, its parameters frozen or not by the rules, and how its blocks are held."""

    model: SafeVLM
    quantize: str | None

    @classmethod
    def of(cls, config: TrainConfig, quantized: bool = True) -> MetaModel:
        """Build it from configs and processor, without reading a weight.

        Args: quantized: hold the blocks' linear weights as the stage does; False keeps them whole, so that the model
        can run.

        Raises:
            ConfigError: as in `train.run`; or the base's config cannot be read.
            CheckpointError: `modules` is not a folder of trained modules.
        """
        modules, taxonomy, place, source = _described(config)
        with torch.device("meta"):
            model = SafeVLM(
                _base(config, place), SafeProcessor.from_pretrained(source, modules.llm_tokens), modules, taxonomy
            )
            if config.quantize and quantized:
                _quantize(model.base)
            if config.lora:
                add_lora(model, config.lora)
        param_groups(model, config.rules)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        check_rules(config, trained)
        return cls(model, config.quantize)

    def counts(self) -> list[Count]:
        """Parameters of each part by dtype, trained and frozen, in the order of `PARTS`."""
        totals: dict[tuple[str, str | None, bool], tuple[int, float]] = {}
        for name, parameter in self.model.named_parameters():
            whole = parameter.is_floating_point()
            key = (
                part_of(name),
                str(parameter.dtype).removeprefix("torch.") if whole else self.quantize,
                parameter.requires_grad,
            )
            size = parameter.element_size() if whole else quantised_bits(self.quantize, parameter.shape[1]) / 8
            numbers, bytes_ = totals.get(key, (0, 0.0))
            totals[key] = (numbers + parameter.numel(), bytes_ + parameter.numel() * size)
        order = [*PARTS, "other"]
        return [Count(*key, *map(round, totals[key])) for key in sorted(totals, key=lambda key: order.index(key[0]))]

    def weights(self) -> Weights:
        """The sums that `memory.states` takes."""
        counts = self.counts()
        whole = [count for count in counts if count.dtype != self.quantize]
        trained, frozen = ([count for count in whole if count.trained is fate] for fate in (True, False))
        return Weights(
            sum(count.parameters for count in trained),
            sum(count.parameters for count in frozen),
            sum(count.bytes for count in trained),
            sum(count.bytes for count in frozen),
            sum(count.bytes for count in counts if count.dtype == self.quantize),
        )

    def optimizer(self, name: str) -> int:
        """Bytes of the states of an optimizer over what is trained."""
        wide = {id(module.weight) for module in self.model.modules() if isinstance(module, nn.Embedding)}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        shapes = {fate: [tuple(p.shape) for p in trained if (id(p) in wide) is fate] for fate in (False, True)}
        return optimizer_bytes(name, shapes[False], shapes[True])

    def short(self) -> str | None:
        """The first trained parameter of 16 bits, which DDP would refuse; None without."""
        named = self.model.named_parameters()
        return next((n for n, p in named if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)), None)

    def trains(self, *parts: str) -> bool:
        """Whether anything of these parts is trained."""
        return any(count.trained for count in self.counts() if count.part in parts)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    for part, marks in PARTS.items():
        if any(name.startswith(mark) or (part == "LoRA" and mark in name) for mark in marks):
            return part
    return "other"


def _described(config: TrainConfig) -> tuple[SafetyConfig, Taxonomy, str | Path, str | Path]:
    """Shape of the modules, categories, and where the base's config and the processor are."""
    if not config.modules:
        taxonomy = Taxonomy.from_yaml(config.taxonomy) if config.taxonomy else Taxonomy.default()
        return config.safety or SafetyConfig(), taxonomy, config.base, config.base
    folder = Path(config.modules)
    if (folder / ADAPTER).exists():
        raise ConfigError(f"modules: {folder} holds LoRA weights; export it first and start from the export")
    meta = read_meta(folder)
    place = folder if meta.base == "." or (folder / "config.json").exists() else meta.base
    return meta.safety, read_taxonomy(folder), place, place


def _base(config: TrainConfig, place: str | Path) -> PreTrainedModel:
    """The base in the dtype that `load_base` would load; without its blocks where the head alone is trained."""
    try:
        stock = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"base: {str(place)!r} has no config that can be read ({str(error).splitlines()[0]})"
        ) from error
    dtype = getattr(torch, config.dtype) if config.dtype not in (None, "auto") else stock.dtype or torch.float32
    if config.head_only:
        stock.get_text_config().num_hidden_layers = 0
    model = AutoModelForImageTextToText.from_config(stock, dtype=dtype, trust_remote_code=False)
    if config.head_only:
        model.set_output_embeddings(nn.Identity())
    return model


def _quantize(base: PreTrainedModel) -> None:
    """Mark the blocks' linear weights as quantised: integers, as in bitsandbytes, but one for each weight."""
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and BLOCKS in f".{name}":
            module.weight = nn.Parameter(torch.empty_like(module.weight, dtype=torch.uint8), requires_grad=False)
