"""Build a stage from its configuration: model, data and trainer. Nothing but vision features is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments, set_seed

from data_recipes.core.mixture import SourceCounts, print_mixture
from safety_modules.checkpoints.format import ADAPTER
from safety_modules.checkpoints.load import load
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.model.load_base import load_base
from safety_modules.model.packing import enable_packing
from safety_modules.model.quantization import Quantization
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.taxonomy import Taxonomy
from train.config import LoraConfig, TrainConfig
from train.data.dataset import Collator, ExchangeDataset
from train.data.head_only import FeatureDataset, collate_features
from train.data.mixture import check_leaks, read_train, read_validation
from train.features.store import FeatureStore
from train.loop.checks import check_precision, check_rules, check_settings
from train.loop.liger import apply_liger, check_liger
from train.loop.trainer import SafetyTrainer


class StageModel(NamedTuple):
    """The model of a stage: `vlm` is trained, `adapter` are the LoRA weights in its base."""

    vlm: SafeVLM
    adapter: PeftModel | None


class TrainData(NamedTuple):
    """The rows of a stage; `parts` says what each source gave."""

    train: Dataset
    validation: Dataset
    collator: Callable[[list[dict]], dict]
    lengths: list[tuple[int, bool]] | None  # of `StepSampler`
    parts: list[SourceCounts]


def build_model(config: TrainConfig, arguments: TrainingArguments) -> StageModel:
    """The model with its adapters, attention and kernels. Every setting is checked before anything is loaded.

    Raises:
        ConfigError, CheckpointError: value, rule and remedy.
    """
    check_settings(config, arguments)
    check_liger(config, arguments)
    vlm = load_model(config)
    if config.attention:
        vlm.base.set_attn_implementation(config.attention)
    if config.data.packing and not config.head_only:
        enable_packing(vlm.base)
    if config.trainer.get("use_liger_kernel"):
        apply_liger(vlm.base, arguments.liger_kernel_config)
    set_seed(arguments.seed)
    return StageModel(vlm, add_lora(vlm, config.lora) if config.lora else None)


def load_model(config: TrainConfig) -> SafeVLM:
    """The folder of trained modules, or a base with new modules; without adapters."""
    compute = "bfloat16" if config.trainer.get("bf16") else "float32"
    options = {
        "dtype": config.dtype or "auto",
        "language_model": not config.head_only,
        "quantize": Quantization(config.quantize, compute) if config.quantize else None,
    }
    if config.modules:
        if (Path(config.modules) / ADAPTER).exists():
            raise ConfigError(
                f"modules: {config.modules} holds LoRA weights; export it first and start from the export"
            )
        return load(config.modules, **options)
    taxonomy = Taxonomy.from_yaml(config.taxonomy) if config.taxonomy else Taxonomy.default()
    try:
        base = load_base(config.base, **options)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"base: {config.base!r} cannot be loaded ({reason}); name its folder, or its hub name"
        ) from error
    set_seed(config.trainer.get("seed", 42))  # here, because loading draws random numbers as well under ZeRO-3
    return SafeVLM.attach(base, config.safety or SafetyConfig(), taxonomy)


def add_lora(model: SafeVLM, config: LoraConfig) -> PeftModel:
    """Put adapters into the base in place, on every linear layer of the language model's blocks."""
    layers = linear_layers(model.base)
    return get_peft_model(
        model.base, PeftLora(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=layers)
    )


def linear_layers(base: PreTrainedModel) -> list[str]:
    """Names of the linear layers of the language model's blocks; its output layer is not one of them."""
    linear = (name for name, module in base.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if ".language_model.layers." in f".{name}"]


def build_data(config: TrainConfig, arguments: TrainingArguments, model: StageModel) -> TrainData:
    """Rows, checked for leaks and with the vision features that the stage reads in place of images; prints the mixture.

    Raises:
        DataError: a row or image cannot be used, or an image to train on is held out.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader's workers are forked
    data, vlm, taxonomy, processor = config.data, model.vlm, model.vlm.taxonomy, model.vlm.processor
    samples, parts = read_train(data, taxonomy, arguments.seed, answers=not config.head_only)
    validation_samples = read_validation(data, taxonomy)
    if arguments.process_index == 0:
        check_leaks(data, taxonomy, samples, validation_samples)
        print_mixture(parts)
    train = ExchangeDataset(samples, processor, taxonomy, data, train=True)
    validation = ExchangeDataset(validation_samples, processor, taxonomy, data)
    lengths = train.lengths(vlm.backbone.patches(vlm.config)) if data.group_by_length else None
    if config.head_only or data.features:
        vlm.to(arguments.device)
        images = (image for rows in (train, validation) for sample in rows.samples for image in sample.images)
        train.store = validation.store = FeatureStore.compute(vlm, images, data.features)
    if config.head_only:
        heads = FeatureDataset(train, train.store), FeatureDataset(validation, validation.store)
        return TrainData(*heads, collate_features, lengths, parts)
    return TrainData(train, validation, Collator(processor, data.packing), lengths, parts)


def build_trainer(
    config: TrainConfig, arguments: TrainingArguments, model: StageModel, data: TrainData
) -> SafetyTrainer:
    """The trainer, once the rules are known to train what this stage can.

    Raises:
        ConfigError: value, rule and remedy.
    """
    trainer = SafetyTrainer(
        model=model.vlm,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.validation if config.data.validation else None,
        data_collator=data.collator,
        rules=config.rules,
        head_weight=config.head_weight,
        lengths=data.lengths,
    )
    check_precision(trainer)
    check_rules(config, trainer.trained)
    return trainer
