"""TrainConfig: what one stage does, read from YAML with command-line overrides."""

from __future__ import annotations

import dataclasses
import re
from argparse import ArgumentError
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import ArgumentParser
from transformers import TrainingArguments

from data_recipes.core.mixture import Source
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.model.quantization import KINDS
from safety_modules.taxonomy import nearest


@dataclass(frozen=True)
class DataConfig:
    """What a stage reads.

    Attributes:
        root: folder of the data sets.
        train: trained on, shuffled by the trainer.
        balance: from 0, the risky types as frequent as they are, to 1, all equally; see `_mixture.mix`.
        max_repeats: for the balance no row is repeated more often.
        clean_share: share of clean rows among those trained on; null leaves it as it is.
        held_out: files that `python -m data_recipes split` wrote: no picture of theirs may be trained on.
        validation: the head is measured on these during training; may be empty.
        hint_rate: share of risky training rows that carry their hint, in [0, 1], so that the model learns to read hints
            and does not depend on them. PSA-VLM's release trains without any.
        forge_rate: share of training rows, in [0, 1], whose question gets a text that a user might add to mislead the head
            (see `forgery`); the label stays.
        max_length: bound on tokens in a row, image features included; a longer row is an error.
        features: folder where what the vision tower makes of the pictures is kept, for further runs and stages; null to keep
            it in memory (guard) or to run the tower in each step (other stages).
        packing: put the rows of a batch one after another, without padding; the losses are those of padded rows.
        group_by_length: batches of rows with and without pictures apart, each of about equal length.
    """

    root: str
    train: list[Source]
    balance: float = 0.0
    max_repeats: int = 10
    clean_share: float | None = None
    held_out: list[str] = field(default_factory=list)
    validation: list[Source] = field(default_factory=list)
    hint_rate: float = 0.0
    forge_rate: float = 0.0
    max_length: int = 2048
    features: str | None = None
    packing: bool = False
    group_by_length: bool = False

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("data.train is empty; name at least one recipe")
        if self.clean_share is not None and not 0 < self.clean_share < 1:
            raise ConfigError(
                f"data.clean_share: {self.clean_share} is a share and must be above 0 and below 1; or null"
            )
        if self.max_repeats < 1:
            raise ConfigError(f"data.max_repeats: {self.max_repeats} must be at least 1")
        for name in ("hint_rate", "forge_rate", "balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}: {getattr(self, name)} is a share and must be in 0..1")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on all linear layers of the language model, never on its output layer.

    Source: PSA-VLM supplement, Table 1: rank 256, alpha 16, dropout 0.05.
    """

    rank: int = 256
    alpha: float = 16
    dropout: float = 0.05


@dataclass(frozen=True)
class TrainConfig:
    """One stage.

    Attributes:
        output: folder of the run: checkpoints, logs and, at the end, `final/`.
        data: what it reads.
        rules: parameter pattern -> learning rate, or null to freeze; the first full match counts.
        base: a base model, folder or hub name, to attach new modules to. Exactly one of base and modules.
        modules: a folder of trained modules to go on from, `runs/.../final`.
        safety: shape of new modules; only with base.
        taxonomy: file of the categories, the paper's where null; only with base.
        lora: adapters to train, or null for none.
        guard: train projector, head tokens and head alone, on features computed once: the language model is not run. Its
            tokens and the base must be frozen.
        dtype: of the base's weights: "bfloat16", "float32", ..., or null for that of its files.
        quantize: keep the language model's frozen weights in 4 bits ("nf4") or 8 ("int8"), by bitsandbytes; needs `lora`.
        attention: of the base: "sdpa", "eager", "flash_attention_2", ..., or null for what transformers chooses.
        head_weight: factor of the two head losses. 10, which is only in PSA-VLM's release.
        trainer: any field of transformers.TrainingArguments.
    """

    output: str
    data: DataConfig
    rules: dict[str, float | None]
    base: str | None = None
    modules: str | None = None
    safety: SafetyConfig | None = None
    taxonomy: str | None = None
    lora: LoraConfig | None = None
    guard: bool = False
    dtype: str | None = None
    quantize: str | None = None
    attention: str | None = None
    head_weight: float = 10.0
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.base is None) == (self.modules is None):
            raise ConfigError(
                f"base {self.base!r} and modules {self.modules!r}: give one, base to start, modules to go on"
            )
        if self.modules and (self.safety or self.taxonomy):
            raise ConfigError("safety and taxonomy come with the modules' folder; remove them, or start from a base")
        if self.quantize is not None and self.quantize not in KINDS:
            raise ConfigError(f"quantize: unknown value {self.quantize!r}; {nearest(self.quantize, list(KINDS))}")
        if self.quantize and not self.lora:
            raise ConfigError(
                f"quantize {self.quantize!r} without lora: quantised weights cannot be trained; add lora, or remove it"
            )
        if self.quantize and self.guard:
            raise ConfigError(
                f"quantize {self.quantize!r} with guard: the language model is not loaded; remove one of them"
            )
        if self.trainer.get("eval_strategy", "no") not in ("no", False) and not self.data.validation:
            raise ConfigError(
                "trainer.eval_strategy is set but data.validation is empty; name a recipe there, or set 'no'"
            )
        names = [f.name for f in dataclasses.fields(TrainingArguments)]
        for key in self.trainer:
            if key not in names:
                raise ConfigError(
                    f"trainer.{key}: TrainingArguments has no such field; {nearest(key, names).split('valid')[0]}"
                )


def read_config(args: list[str] | None = None) -> TrainConfig:
    """Parse a command line, `--config FILE` and overrides such as `--data.root DIR --trainer.max_steps 10`.

    Raises:
        ConfigError: an unknown key, with the nearest name, or a value that breaks a rule.
    """
    parser = ArgumentParser(prog="train.run", exit_on_error=False, description="Train the safety modules, one stage.")
    parser.add_argument("--config", action="config", help="YAML of the stage")
    try:
        parser.add_class_arguments(TrainConfig)
        values = vars(parser.instantiate(parser.parse_args(args)))
        return TrainConfig(**{name: value for name, value in values.items() if name != "config"})
    except ConfigError:
        raise
    except (ArgumentError, ValueError) as error:
        unknown = re.search(r"[oO]ption '([^']+)'", str(error))
        near = f"; {nearest(unknown[1], _names())}" if unknown else ""
        raise ConfigError(f"{' '.join(args or [])}: {_reason(error)}{near}") from error


def _reason(error: Exception) -> str:
    """The message on one line; of a value that fits no type of a union, what its own type had against it."""
    reasons = [line.strip(" -") for line in str(error).splitlines() if line.strip().startswith("- ")]
    reasons = [reason for reason in reasons if "NoneType" not in reason]
    return " ".join((reasons[0] if reasons else str(error)).split())


def _names() -> list[str]:
    """Every key that a stage's YAML may have."""
    return [
        f.name for kind in (TrainConfig, DataConfig, Source, SafetyConfig, LoraConfig) for f in dataclasses.fields(kind)
    ]
