"""Train one stage: `torchrun -m train.run --config train/configs/stage1.yaml --data.root DIR`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from data_recipes._mixture import Part
from data_recipes._show import show
from safety_modules import checkpoint
from safety_modules.checkpoint import write_text
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.errors import user_errors_exit
from safety_modules.modeling import SafeVLM
from safety_modules.taxonomy import Taxonomy
from train.config import LoraConfig, TrainConfig, read_config
from train.data import Collator, Exchanges
from train.features import FeatureStore
from train.guard import FeatureCollator, Features
from train.mixture import read_train, read_validation, refuse_leaks
from train.trainer import SafetyTrainer

FINAL, MIXTURE = "final", "mixture.json"


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
    if trainer.is_world_process_zero():
        write_text(Path(config.output) / MIXTURE, json.dumps([part.to_dict() for part in parts], indent=1) + "\n")
    last = get_last_checkpoint(config.output) if Path(config.output).is_dir() else None
    trainer.train(resume_from_checkpoint=last, ignore_keys_for_eval=["logits"])
    if trainer.is_world_process_zero():
        save(trainer, adapter, base, Path(config.output), config.modules)
    return Path(config.output) / FINAL


def prepare(config: TrainConfig) -> tuple[SafetyTrainer, PeftModel | None, str, list[Part]]:
    """Read everything that the stage needs; nothing is written before all of it is there.

    Returns:
        The trainer, the adapter that it trains or None, where the base model is, and what the training rows are made of.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = training_arguments(config)
    set_seed(arguments.seed)  # new modules are drawn from it
    model, base = build(config)
    if config.attention:
        model.base.set_attn_implementation(config.attention)
    adapter = add_lora(model, config.lora) if config.lora else None
    data, taxonomy, processor = config.data, model.taxonomy, model.processor
    rows, parts = read_train(data, taxonomy, arguments.seed, answers=not config.guard)
    watched = read_validation(data, taxonomy)
    if arguments.process_index == 0:
        refuse_leaks(data, taxonomy, rows, watched)
        show(parts)
    rows = Exchanges(rows, processor, taxonomy, data, train=True)
    validation = Exchanges(watched, processor, taxonomy, data)
    if config.guard:
        model.to(arguments.device)
        pictures = (image for part in (rows, validation) for sample in part.samples for image in sample.images)
        store = FeatureStore.compute(model, pictures, data.features)
        rows, validation = Features(rows, store), Features(validation, store)
    trainer = SafetyTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=validation if data.validation else None,
        data_collator=(FeatureCollator if config.guard else Collator)(processor),
        rules=config.rules,
        head_weight=config.head_weight,
    )
    if config.guard:
        _check_guard(trainer.trained)
    return trainer, adapter, base, parts


def _check_guard(trained: set[str]) -> None:
    """Refuse a guard stage that would train what it does not run."""
    idle = sorted(name for name in trained if not name.startswith("safety.") or name.startswith("safety.llm_tokens."))
    if idle:
        raise ConfigError(
            f"guard: the language model is not run, so {idle[0]!r} cannot be trained; freeze it with null in the rules, above "
            "the rule that trains it"
        )


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """The stage's TrainingArguments: what this code needs, with the config's `trainer` over it."""
    values = {
        "output_dir": config.output,
        "report_to": "tensorboard",
        "remove_unused_columns": False,
        "label_names": ["risk_type", "risk_level"],
        "use_cpu": not torch.cuda.is_available(),
        "save_total_limit": 2,
        **config.trainer,
    }
    # YAML reads a bare `no` as false
    return TrainingArguments(**{k: "no" if k.endswith("_strategy") and v is False else v for k, v in values.items()})


def build(config: TrainConfig) -> tuple[SafeVLM, str]:
    """The model of the stage, and where its base is."""
    if config.modules:
        if (Path(config.modules) / checkpoint.ADAPTER).exists():
            raise ConfigError(f"modules: {config.modules} holds LoRA weights; export it first and go on from the export")
        base = checkpoint.base_of(config.modules)
        return checkpoint.load(config.modules, language_model=not config.guard), config.modules if base == "." else base
    taxonomy = Taxonomy.from_yaml(config.taxonomy) if config.taxonomy else Taxonomy.default()
    modules = config.safety or SafetyConfig()
    return SafeVLM.attach(config.base, modules, taxonomy, language_model=not config.guard), config.base


def add_lora(model: SafeVLM, config: LoraConfig) -> PeftModel:
    """Put adapters into the base in place, on every linear layer of the language model's blocks."""
    layers = [
        name
        for name, module in model.base.named_modules()
        if isinstance(module, torch.nn.Linear) and ".language_model.layers." in f".{name}"
    ]
    return get_peft_model(
        model.base,
        PeftLora(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=layers),
    )


def save(trainer: SafetyTrainer, adapter: PeftModel | None, base: str, output: Path, source: str | None) -> None:
    """Write `final/`, with the calibration and policy of `source` where the head is still the same, and the run's history."""
    model: SafeVLM = trainer.model
    full = adapter is None and any(parameter.requires_grad for parameter in model.base.parameters())
    with checkpoint.fresh_folder(output / FINAL) as folder:
        if adapter is not None:
            adapter.save_pretrained(folder / checkpoint.ADAPTER)
        if full:
            model.base.save_pretrained(folder)
            model.processor.save_pretrained(folder)
        checkpoint.save_safety(model, folder, base="." if full else base)
        if source:
            checkpoint.carry(source, folder)
    (output / "history.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
