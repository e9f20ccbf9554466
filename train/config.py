"""TrainConfig: what one stage does, read from YAML files with command-line overrides."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
import textwrap
from dataclasses import dataclass, field
from typing import Any

import yaml
from transformers import TrainingArguments

from data_recipes.core.data_config import DataConfig, Source
from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.config_reader import parse, read_yaml, read_yaml_file
from safety_modules.model.quantization import KINDS
from safety_modules.taxonomy import nearest

USAGE = """usage: torchrun -m train.run --config FILE [--config FILE ...] [--KEY VALUE | --KEY=VALUE ...]

Files and values are read from left to right. One adds to the mappings of those before it and replaces all else; `rules`
are replaced too. A VALUE is YAML: null, '[{recipe: custom}]'. Nested keys have dots: --data.root DIR.
"""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on all linear layers of the language model, never on its output layer.

    Source: PSA-VLM supplement, Table 1: rank 256, alpha 16, dropout 0.05.

    Attributes:
        rank: of the adapters' matrices, from 1.
        alpha: the adapters' output is scaled by alpha / rank.
        dropout: of the adapters' input, in [0, 1).
    """

    rank: int = 256
    alpha: float = 16
    dropout: float = 0.05


@dataclass(frozen=True)
class TrainConfig:
    """One stage.

    Attributes:
        output: folder of the run: checkpoints, logs and, at the end, `final/`.
        data: the rows to train on and to validate on.
        rules: parameter pattern -> learning rate, or null to freeze; the first full match counts.
        base: a base model, folder or hub name, to attach new modules to. Exactly one of base and modules.
        modules: a folder of trained modules to continue from, `runs/.../final`.
        safety: shape of new modules; only with base.
        taxonomy: file of the categories; null for the paper's. Only with base.
        lora: adapters to train, or null for none.
        head_only: train projector, head tokens and head alone, on vision features that are computed once: the language
            model is not run. Its tokens and the base must be frozen.
        dtype: of the base's weights: "bfloat16", "float32", ..., or null for that of its files.
        quantize: hold the language model's frozen weights in 4 bits ("nf4") or 8 ("int8"); needs `lora`.
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
                f"base {self.base!r} and modules {self.modules!r}: give one, base to start or modules to continue from"
            )
        if self.modules and (self.safety or self.taxonomy):
            raise ConfigError("safety and taxonomy come with the modules' folder; remove them, or start from a base")
        if self.quantize is not None and self.quantize not in KINDS:
            raise ConfigError(f"quantize: unknown value {self.quantize!r}; {nearest(self.quantize, list(KINDS))}")
        if self.quantize and not self.lora:
            rule = "quantised weights cannot be trained; add lora, or remove quantize"
            raise ConfigError(f"quantize {self.quantize!r} without lora: {rule}")
        if self.quantize and self.head_only:
            rule = "the language model is not loaded; remove one of them"
            raise ConfigError(f"quantize {self.quantize!r} with head_only: {rule}")
        self._check_trainer()

    def _check_trainer(self) -> None:
        """Check what is passed to TrainingArguments."""
        if self.trainer.get("eval_strategy", "no") not in ("no", False) and not self.data.validation:
            raise ConfigError(
                "trainer.eval_strategy is set but data.validation is empty; name a recipe there, or set 'no'"
            )
        names = [f.name for f in dataclasses.fields(TrainingArguments)]
        for key in self.trainer:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                remedy = f"did you mean {near[0]!r}?" if near else "its documentation lists them; remove this one"
                raise ConfigError(f"trainer.{key}: transformers.TrainingArguments has no such field; {remedy}")


def read_config(args: list[str]) -> TrainConfig:
    """Parse a command line: `--config FILE` and overrides such as `--data.root DIR --trainer.max_steps=10`.

    Raises:
        ConfigError: an unknown key, with the nearest name, or a value that breaks a rule.
        SystemExit: with --help, after the keys were printed.
    """
    if {"-h", "--help"} & set(args):
        sys.stdout.write(help_text())
        raise SystemExit(0)
    values: dict[str, Any] = {}
    options = _options(args)
    for name, text in options:
        if name == "config":
            more = read_yaml_file(text)
            if not isinstance(more, dict):
                raise ConfigError(f"{text}: must be a mapping of keys to values, not {more!r}")
        else:
            try:
                more = read_yaml(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"--{name} {text!r}: is not YAML ({' '.join(str(error).split())})") from error
            for key in reversed(name.split(".")):
                more = {key: more}
        _merge(values, more)
    places = [text if name == "config" else f"--{name}" for name, text in options]
    return parse(TrainConfig, values, ", ".join(places) or "no --config FILE was given")


def help_text() -> str:
    """Usage, then every key of a stage's YAML with its type, its default and what it means."""
    sections = {"": TrainConfig, "data": DataConfig, "data.train[]": Source, "safety": SafetyConfig, "lora": LoraConfig}
    lines = [USAGE]
    for place, section in sections.items():
        meanings = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(section), re.MULTILINE))
        lines.append(f"{place or 'keys'}:")
        for key in dataclasses.fields(section):
            required = key.default is dataclasses.MISSING and key.default_factory is dataclasses.MISSING
            default = key.default_factory() if key.default is dataclasses.MISSING and not required else key.default
            lines.append(f"  {key.name}: {key.type}, {'required' if required else f'default {default!r}'}")
            meaning = " ".join(meanings.get(key.name, "").split())
            lines += textwrap.wrap(meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


def _options(args: list[str]) -> list[tuple[str, str]]:
    """`--name value` and `--name=value` as pairs."""
    pairs, rest = [], list(args)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"{word!r}: is not an option; give --config FILE, then --KEY VALUE")
        if not equals and (not rest or rest[0].startswith("--")):
            raise ConfigError(f"{word}: has no value; give --KEY VALUE")
        pairs.append((name[2:], value if equals else rest.pop(0)))
    return pairs


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    """Add later values; nested mappings are merged, all else replaced, and `rules`, which are ordered."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict) and key != "rules":
            _merge(values[key], value)
        else:
            values[key] = value
