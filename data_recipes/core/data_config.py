"""DataConfig: which rows a stage is trained and measured on, the `data` part of its YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_recipes.core.mixture import Source
from safety_modules.config import ConfigError
from safety_modules.config_reader import parse, read_yaml_file


@dataclass(frozen=True)
class DataConfig:
    """What a stage reads.

    Attributes:
        root: folder of the data sets.
        train: trained on, shuffled by the trainer.
        balance: from 0, the risky types as frequent as they are, to 1, all equally; see `mixture.mix`.
        max_repeats: for the balance no row is repeated more often.
        clean_fraction: fraction of clean rows among those trained on; null leaves it as it is.
        held_out: files that `python -m data_recipes split` wrote: no image of theirs may be trained on.
        validation: the head is measured on these during training; may be empty.
        hint_rate: share of risky training rows that carry their hint, in [0, 1], so that the model learns to read hints
            and does not depend on them. PSA-VLM's release trains without any.
        injection_rate: share of training rows, in [0, 1], whose question gets a text that a user might add to mislead the head
            (see `forgery`); the label stays.
        max_length: bound on tokens in a row, image features included; a longer row is an error.
        features: folder where what the vision tower makes of the images is kept, for further runs and stages; null to keep
            it in memory (guard) or to run the tower in each step (other stages).
        packing: put the rows of a batch one after another, without padding; the losses are those of padded rows.
        group_by_length: batches of rows with and without images apart, each of about equal length.
    """

    root: str
    train: list[Source]
    balance: float = 0.0
    max_repeats: int = 10
    clean_fraction: float | None = None
    held_out: list[str] = field(default_factory=list)
    validation: list[Source] = field(default_factory=list)
    hint_rate: float = 0.0
    injection_rate: float = 0.0
    max_length: int = 2048
    features: str | None = None
    packing: bool = False
    group_by_length: bool = False

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("data.train is empty; name at least one recipe")
        if self.clean_fraction is not None and not 0 < self.clean_fraction < 1:
            raise ConfigError(
                f"data.clean_fraction: {self.clean_fraction} is a share and must be above 0 and below 1; or null"
            )
        if self.max_repeats < 1:
            raise ConfigError(f"data.max_repeats: {self.max_repeats} must be at least 1")
        for name in ("hint_rate", "injection_rate", "balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}: {getattr(self, name)} is a share and must be in 0..1")


class StageData(NamedTuple):
    """A stage's data with what else of its YAML decides which rows are drawn."""

    config: DataConfig
    seed: int
    taxonomy: str | None


def read_data_config(path: str | Path, root: str | None = None) -> StageData:
    """Read the YAML of a stage, or of its `data` part alone.

    Args:
        root: in place of the file's own.

    Raises:
        ConfigError: it is not such a file, or a value breaks a rule.
    """
    stage = read_yaml_file(path)
    data = stage.get("data", stage) if isinstance(stage, dict) else None
    if not isinstance(data, dict) or not data.get("train"):
        raise ConfigError(f"{path}: has no data.train; name at least one source there")
    values = {**data, "root": root or data.get("root")}
    if values["root"] is None:
        raise ConfigError(f"{path}: has no data.root; add it, or pass --root")
    if not isinstance(trainer := stage.get("trainer") or {}, dict):
        raise ConfigError(f"{path}: trainer {trainer!r} must be a mapping")
    return StageData(parse(DataConfig, values, f"{path}: data"), trainer.get("seed", 42), stage.get("taxonomy"))
