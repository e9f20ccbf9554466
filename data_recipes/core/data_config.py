"""Plan: which rows a stage is trained and measured on, as its YAML says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from data_recipes.core.mixture import Source, is_number
from safety_modules.sample import DataError
from safety_modules.taxonomy import nearest


@dataclass(frozen=True)
class Plan:
    """The `data` part of a stage's YAML, as far as it says which rows are trained and measured on.

    Attributes: see train.config.DataConfig, which has the same names. seed, taxonomy: of the stage.
    """

    root: str
    train: list[Source]
    validation: list[Source] = field(default_factory=list)
    balance: float = 0.0
    max_repeats: int = 10
    clean_share: float | None = None
    held_out: list[str] = field(default_factory=list)
    seed: int = 42
    taxonomy: str | None = None

    def __post_init__(self) -> None:
        if not is_number(self.balance) or not 0 <= self.balance <= 1:
            raise DataError(f"balance {self.balance!r} is a share and must be in 0..1")
        if self.clean_share is not None and (not is_number(self.clean_share) or not 0 < self.clean_share < 1):
            raise DataError(f"clean_share {self.clean_share!r} is a share and must be above 0 and below 1; or null")
        if not isinstance(self.max_repeats, int) or self.max_repeats < 1:
            raise DataError(f"max_repeats {self.max_repeats!r} must be a number from 1")
        if not isinstance(self.held_out, list) or not all(isinstance(name, str) for name in self.held_out):
            raise DataError(f"held_out {self.held_out!r} must be a list of files; write it as [FILE]")

    @classmethod
    def from_yaml(cls, path: Path, root: str | None = None) -> Plan:
        """Read the YAML of a stage, or of its `data` part alone.

        Args: root: in place of the file's own.

        Raises:
            DataError: it is not such a file, or a source has an unknown key.
        """
        try:
            stage = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
        data = stage.get("data", stage) if isinstance(stage, dict) else None
        if not isinstance(data, dict) or not data.get("train"):
            raise DataError(f"{path}: has no data.train; name at least one source there")
        given = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        given["root"] = root or given.get("root")
        if given["root"] is None:
            raise DataError(f"{path}: has no data.root; add it, or pass --root")
        trainer = stage.get("trainer") or {}
        if not isinstance(trainer, dict):
            raise DataError(f"{path}: trainer {trainer!r} must be a mapping")
        sources = {name: _sources(path, name, given.get(name) or []) for name in ("train", "validation")}
        stage_wide = {"seed": trainer.get("seed", 42), "taxonomy": stage.get("taxonomy")}
        try:
            return cls(**{**given, **sources, **stage_wide})
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _sources(path: Path, name: str, value: object) -> list[Source]:
    if not isinstance(value, list):
        raise DataError(
            f"{path}: {name} {value!r} must be a list of sources, such as [{{recipe: custom, split: train}}]"
        )
    return [_source(path, row) for row in value]


def _source(path: Path, row: object) -> Source:
    names = list(Source.__dataclass_fields__)
    if not isinstance(row, dict) or "recipe" not in row:
        raise DataError(f"{path}: source {row!r} must be a mapping with recipe; it may have {', '.join(names[1:])}")
    for name in row:
        if name not in names:
            raise DataError(
                f"{path}: source {row['recipe']!r} has an unknown key {name!r}; {nearest(str(name), names)}"
            )
    return Source(**row)
