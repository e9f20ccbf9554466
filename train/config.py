"""TrainConfig: what one stage does, read from YAML with command-line overrides."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import Any

import yaml
from transformers import TrainingArguments

from data_recipes.core.data_config import DataConfig
from data_recipes.core.mixture import Source
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.config_reader import parse, read_yaml, read_yaml_file
from safety_modules.model.quantization import KINDS
from safety_modules.taxonomy import nearest


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
    head_only: bool = False
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
        if self.quantize and self.head_only:
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


def read_config(args: list[str]) -> TrainConfig:
    """Parse a command line, `--config FILE` and overrides such as `--data.root DIR --trainer.max_steps 10`.

    Raises:
        ConfigError: an unknown key, with the nearest name, or a value that breaks a rule.
    """
    if {"-h", "--help"} & set(args):
        raise SystemExit(print_help())
    values: dict[str, Any] = {}
    for name, text in _options(args):
        if name == "config":
            loaded = read_yaml_file(text)
            if not isinstance(loaded, dict):
                raise ConfigError(f"{text}: must be a mapping of keys to values, not {loaded!r}")
            _merge(values, loaded)
        else:
            try:
                _set(values, name.split("."), read_yaml(text))
            except yaml.YAMLError as error:
                raise ConfigError(f"--{name} {text!r}: is not YAML ({' '.join(str(error).split())})") from error
    return parse(TrainConfig, values, " ".join(args[:2]) or "configuration")


def print_help() -> int:
    """Print every key of a stage's YAML."""
    print(
        "torchrun -m train.run --config FILE [--KEY VALUE ...]\n\nKeys, as in the YAML; a nested one is --data.root.\n"
    )
    for kind in (TrainConfig, DataConfig, Source, SafetyConfig, LoraConfig):
        print(f"{kind.__name__}: {inspect.getdoc(kind)}\n")
    return 0


def _options(args: list[str]) -> list[tuple[str, str]]:
    """`--name value` and `--name=value` as pairs."""
    pairs, rest = [], list(args)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"{word!r}: not an option; give --config FILE, then --KEY VALUE")
        if not equals and not rest:
            raise ConfigError(f"{word}: has no value; give --KEY VALUE")
        pairs.append((name[2:], value if equals else rest.pop(0)))
    return pairs


def _set(values: dict[str, Any], keys: list[str], value: object) -> None:
    """Put a value at a nested key; what stands there and is not a mapping is replaced."""
    for key in keys[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[keys[-1]] = value


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    """Add a later file's values; nested mappings are merged, all else is replaced."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value
