"""Train one stage: `torchrun -m train.run --config train/configs/stage1.yaml --data.root DIR`."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainingArguments, set_seed

from data_recipes.core.mixture import Part
from data_recipes.core.mixture_table import show
from safety_modules.checkpoints.control_files import copy_control
from safety_modules.checkpoints.format import ADAPTER, read_meta
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.save import save_safety
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.errors import user_errors_exit
from safety_modules.files import fresh_folder, write_text
from safety_modules.model.load_base import load_base
from safety_modules.model.packing import enable_packing
from safety_modules.model.quantization import Quantization
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy
from train.config import LoraConfig, TrainConfig, read_config
from train.data.dataset import Collator, ExchangeDataset
from train.data.head_only import FeatureDataset, collate_features
from train.data.mixture import check_leaks, read_train, read_validation
from train.features.store import FeatureStore
from train.loop.checks import check_precision, check_rules, check_settings
from train.loop.liger import apply_liger, check_liger
from train.loop.reshard import Repair, convert, needs_resharding
from train.loop.resume import (
    CheckpointManifest,
    StopOnSignal,
    disk_error,
    is_incomplete,
    last_complete_checkpoint,
    matching_accumulation,
    worker_message,
)
from train.loop.trainer import SafetyTrainer
from train.loop.zero_weights import gather_weights

logger = logging.getLogger(__name__)

FINAL, MIXTURE = "final", "mixture.json"
BATCH = (("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1))  # with TrainingArguments' defaults


def main(args: list[str] | None = None) -> None:
    """Read the configuration and train."""
    with user_errors_exit():
        train(read_config(args))


def train(config: TrainConfig) -> Path:
    """Build, fit, save.

    Returns:
        The folder of the result, `<output>/final`: `safety/`, with `adapter/` beside it where LoRA was trained, or the whole
        model where the base itself was.
    """
    trainer, adapter, base, parts = prepare(config)
    output = Path(config.output)
    if trainer.is_world_process_zero():
        write_text(output / MIXTURE, json.dumps([part.to_dict() for part in parts], indent=1) + "\n")
    stop = StopOnSignal()
    for callback in (stop, CheckpointManifest()):
        trainer.add_callback(callback)
    last = last_complete_checkpoint(output)
    if last and trainer.is_deepspeed_enabled and needs_resharding(last, trainer.args.world_size):
        with trainer.args.main_process_first(desc="universal checkpoint"):
            convert(last)
        trainer.add_callback(Repair())
    try:
        trainer.train(resume_from_checkpoint=last, ignore_keys_for_eval=["logits"])
    except DataError as error:
        raise DataError(worker_message(error)) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_incomplete(output, trainer.state.global_step):
            raise
        raise disk_error(error, output) from error
    if stop.received:
        step = trainer.state.global_step
        logger.warning("%s: stopped by signal %d after step %d; the same command goes on", output, stop.received, step)
        raise SystemExit(128 + stop.received)
    save(trainer, adapter, base, output, config.modules)
    return output / FINAL


def prepare(config: TrainConfig) -> tuple[SafetyTrainer, PeftModel | None, str, list[Part]]:
    """Read everything that the stage needs; nothing is written before all of it is there.

    Returns:
        The trainer, the adapter that it trains or None, where the base model is, and what the training rows are made of.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = training_arguments(config)
    check_settings(config, arguments)
    check_liger(config, arguments)
    model, base = build(config)
    if config.attention:
        model.base.set_attn_implementation(config.attention)
    if config.data.packing and not config.head_only:
        enable_packing(model.base)
    if config.trainer.get("use_liger_kernel"):
        apply_liger(model.base, arguments.liger_kernel_config)
    set_seed(arguments.seed)
    adapter = add_lora(model, config.lora) if config.lora else None
    data, taxonomy, processor = config.data, model.taxonomy, model.processor
    rows, parts = read_train(data, taxonomy, arguments.seed, answers=not config.head_only)
    watched = read_validation(data, taxonomy)
    if arguments.process_index == 0:
        check_leaks(data, taxonomy, rows, watched)
        show(parts)
    rows = ExchangeDataset(rows, processor, taxonomy, data, train=True)
    validation = ExchangeDataset(watched, processor, taxonomy, data)
    lengths = rows.lengths(model.backbone.patches(model.config)) if data.group_by_length else None
    collator = Collator(processor, data.packing)
    if config.head_only or data.features:
        model.to(arguments.device)
        images = (image for part in (rows, validation) for sample in part.samples for image in sample.images)
        store = FeatureStore.compute(model, images, data.features)
        rows.store = validation.store = store
    if config.head_only:
        collator = collate_features
        rows, validation = FeatureDataset(rows, store), FeatureDataset(validation, store)
    trainer = SafetyTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=validation if data.validation else None,
        data_collator=collator,
        rules=config.rules,
        head_weight=config.head_weight,
        lengths=lengths,
    )
    check_precision(trainer)
    check_rules(config, trainer.trained)
    return trainer, adapter, base, parts


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """The stage's TrainingArguments: what this code needs, with the config's `trainer` over it."""
    values = {
        "output_dir": config.output,
        "report_to": "tensorboard",
        "remove_unused_columns": False,
        "label_names": ["risk_type", "risk_level"],
        "use_cpu": not torch.cuda.is_available(),
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,  # asks the device at each step; `finite.Watch` looks instead
        "accelerator_config": {"non_blocking": torch.cuda.is_available()},
        "dataloader_persistent_workers": bool(config.trainer.get("dataloader_num_workers")),
        **config.trainer,
        "use_liger_kernel": False,  # `prepare` applies it; Trainer knows no kernels for a model around another
    }
    deepspeed = values.get("deepspeed")
    if isinstance(deepspeed, str) and not Path(deepspeed).is_file():
        raise ConfigError(f"trainer.deepspeed: there is no file {deepspeed!r}; name one, e.g. train/configs/zero2.json")
    last, processes = last_complete_checkpoint(config.output), int(os.environ.get("WORLD_SIZE", 1))
    if last:
        batch, parts = (int(values.get(name, default)) for name, default in BATCH)
        values["gradient_accumulation_steps"] = matching_accumulation(last, batch, parts, processes)
        if deepspeed and needs_resharding(last, processes):
            settings = (
                deepspeed if isinstance(deepspeed, dict) else json.loads(Path(deepspeed).read_text(encoding="utf-8"))
            )
            values["deepspeed"] = {**settings, "checkpoint": {"load_universal": True}}
    # YAML reads a bare `no` as false
    return TrainingArguments(**{k: "no" if k.endswith("_strategy") and v is False else v for k, v in values.items()})


def build(config: TrainConfig) -> tuple[SafeVLM, str]:
    """The model of the stage, and where its base is."""
    compute = "bfloat16" if config.trainer.get("bf16") else "float32"
    held = {
        "dtype": config.dtype or "auto",
        "language_model": not config.head_only,
        "quantize": Quantization(config.quantize, compute) if config.quantize else None,
    }
    if config.modules:
        if (Path(config.modules) / ADAPTER).exists():
            raise ConfigError(
                f"modules: {config.modules} holds LoRA weights; export it first and go on from the export"
            )
        base = read_meta(config.modules).base
        return load(config.modules, **held), config.modules if base == "." else base
    taxonomy = Taxonomy.from_yaml(config.taxonomy) if config.taxonomy else Taxonomy.default()
    modules = config.safety or SafetyConfig()
    try:
        loaded = load_base(config.base, **held)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"base: {config.base!r} cannot be loaded ({reason}); name its folder, or its hub name"
        ) from error
    set_seed(config.trainer.get("seed", 42))  # here, because loading draws as well under ZeRO-3
    return SafeVLM.attach(loaded, modules, taxonomy), config.base


def add_lora(model: SafeVLM, config: LoraConfig) -> PeftModel:
    """Put adapters into the base in place, on every linear layer of the language model's blocks."""
    layers = linear_layers(model.base)
    return get_peft_model(
        model.base, PeftLora(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=layers)
    )


def linear_layers(base: PreTrainedModel) -> list[str]:
    """Names of the linear layers of the language model's blocks: not its output layer, nor the tower's or the projector's."""
    found = (name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear))
    return [name for name in found if ".language_model.layers." in f".{name}"]


def save(trainer: SafetyTrainer, adapter: PeftModel | None, base: str, output: Path, source: str | None) -> None:
    """Write `final/`, with the calibration and policy of `source` where the head is still the same, and the run's history.

    Every process must call it; the first one writes.
    """
    model: SafeVLM = trainer.model
    trainer.watch.check()
    full = adapter is None and any(name.startswith("base.") for name in trainer.trained)
    wanted = {
        name
        for name in model.state_dict()
        if name in trainer.trained or name.startswith("safety.") or (full and name.startswith("base."))
    }
    weights = gather_weights(model, wanted, keep=trainer.is_world_process_zero())
    if not trainer.is_world_process_zero():
        return
    part = {
        kind: {n.removeprefix(kind): v for n, v in weights.items() if n.startswith(kind)}
        for kind in ("base.", "safety.")
    }
    with fresh_folder(output / FINAL) as folder:
        if adapter is not None:
            layers = {f"base_model.model.{name}": value for name, value in part["base."].items()}
            adapter.save_pretrained(folder / ADAPTER, state_dict=layers)
        if full:
            dtype = model.base.dtype
            if trainer.is_deepspeed_enabled:
                model.base._weight_conversions = None  # under ZeRO-3 transformers notes more renamings than it made
            model.base.save_pretrained(
                folder, state_dict={name: value.to(dtype) for name, value in part["base."].items()}
            )
            model.processor.save_pretrained(folder)
        save_safety(model, folder, base="." if full else base, state=part["safety."])
        if source:
            copy_control(source, folder)
    (output / "history.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
