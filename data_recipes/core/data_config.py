"""DataConfig: which rows a stage is trained and measured on, the `data` part of its YAML."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import data_recipes
from data_recipes.core.reading import RowReader
from data_recipes.core.rows import Rows
from data_recipes.readers import hub
from safety_modules.config import ConfigError
from safety_modules.config_reader import parse, read_yaml_file
from safety_modules.sample import DataError
from safety_modules.taxonomy import CLEAN, Taxonomy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        recipe: a file name of data_recipes.
        root: its folder, or hf://datasets/owner/name; null for the folder `data.root`/recipe, or `data.root` itself for
            the recipe `custom`.
        split: as the recipe names it; "validation" too, where the recipe says so, and "train+validation" for both.
        limit: at most this many rows, spread evenly over the set; null for all.
        weight: how often each row is taken, from 0: 2 is twice, 0.5 every second one.
        labels: category of the data set -> `type`, `type:level`, or null to leave its rows out; before the recipe's.
        language: of questions and answers for rows that have none: a file name of data_recipes/texts, or a path.
        bad_rows: "error" stops at rows that break a rule, "skip" leaves them out and counts them; for that it opens
            every image once.
        stream: read only this many rows, the first, of a hub data set; null to download it whole.
    """

    recipe: str
    root: str | None = None
    split: str = "train"
    limit: int | None = None
    weight: float = 1.0
    labels: dict[str, str | None] = field(default_factory=dict)
    language: str = "en"
    bad_rows: str = "error"
    stream: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise DataError(f"source {self.recipe!r}: weight {self.weight!r} must be a number from 0")
        for name, value in (("limit", self.limit), ("stream", self.stream)):
            if value is not None and value < 1:
                raise DataError(f"source {self.recipe!r}: {name} {value} must be at least 1; leave it out for all rows")

    def path(self, root: str | Path) -> str | Path:
        """Where its data is. Args: root: folder of all data sets."""
        if self.root is not None:
            return self.root if hub.on_hub(self.root) else Path(self.root).expanduser()
        folder = Path(root).expanduser()
        return folder if self.recipe == "custom" else folder / self.recipe

    def read(
        self, root: str | Path, taxonomy: Taxonomy, training: bool, answers: bool = False, open_images: bool = True
    ) -> tuple[Rows, RowReader]:
        """Its rows, at most `limit`, and their reader, which counts what was left out; see `data_recipes.read`.

        Args:
            answers: whether each row needs one.
            open_images: where bad rows are skipped, also skip those whose image cannot be decoded.
        """
        reader = RowReader(taxonomy, self.labels, self.bad_rows, self.language, answers, self.stream)
        reader.open_images = open_images and self.bad_rows == "skip"
        rows = data_recipes.read(self.recipe, self.path(root), self.split, reader, training)
        return rows.spread(self.limit), reader

    def test_splits(self, root: str | Path, taxonomy: Taxonomy) -> list[tuple[str, Rows]]:
        """The other test splits of its data set that can be read: "recipe split" and rows."""
        declared = data_recipes.about(self.recipe).splits
        labels = {name: value or CLEAN for name, value in self.labels.items()}  # left-out rows are measured on, too
        test_splits = []
        for split in declared or ("test",):  # the user's own data may have one
            if not split.startswith("test") or split == self.split:
                continue
            reader = RowReader(taxonomy, labels, "skip", self.language, stream=self.stream, every_label=False)
            try:
                rows = data_recipes.read(self.recipe, self.path(root), split, reader, training=False)
                test_splits.append((f"{self.recipe} {split}", rows))
            except DataError as error:
                level = logging.WARNING if declared else logging.DEBUG
                logger.log(level, "held out: %s has no readable split %r: %s", self.recipe, split, error)
        return test_splits


@dataclass(frozen=True)
class DataConfig:
    """What a stage reads.

    Attributes:
        root: folder of the data sets.
        train: trained on, shuffled by the trainer.
        balance: from 0, the risky types as frequent as they are, to 1, all equally frequent; see `mixture.mix`.
        max_repeats: at most how often the balance repeats a row.
        clean_fraction: fraction of clean rows among those trained on, in (0, 1); null leaves it as it is.
        held_out: files that `python -m data_recipes split` wrote: no image listed there may be trained on.
        validation: the head is measured on these during training; may be empty.
        hint_rate: fraction of risky training rows that carry their hint, in [0, 1], so that the model learns to read
            hints and does not depend on them. PSA-VLM's release trains without any.
        injection_rate: fraction of training rows, in [0, 1], whose question gets a text that a user might add to
            mislead the head (see `train.data.injections`); the label stays.
        max_length: most tokens in a row, image features included; a longer row is an error.
        features: folder that keeps the vision tower's features of the images for further runs and stages; null to keep
            them in memory (head_only) or to run the tower in each step (other stages).
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
                f"data.clean_fraction: {self.clean_fraction} is a fraction and must be in (0, 1), or null"
            )
        if self.max_repeats < 1:
            raise ConfigError(f"data.max_repeats: {self.max_repeats} must be at least 1")
        for name in ("hint_rate", "injection_rate", "balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}: {getattr(self, name)} is a fraction and must be in 0..1")


def read_data_config(path: str | Path, root: str | None = None) -> tuple[DataConfig, int, str | None]:
    """Read the YAML of a stage, or of its `data` part alone.

    Args:
        root: in place of the file's own.

    Returns:
        The data, and the seed and taxonomy file of the stage, which also decide which rows are drawn.

    Raises:
        ConfigError: it is not such a file, or a value breaks a rule.
    """
    stage = read_yaml_file(path)
    data = stage.get("data", stage) if isinstance(stage, dict) else None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: has no data.train; name at least one source there")
    values = {**data, "root": root or data.get("root")}
    if values["root"] is None:
        raise ConfigError(f"{path}: has no data.root; add it, or pass --root")
    if not isinstance(trainer := stage.get("trainer") or {}, dict):
        raise ConfigError(f"{path}: trainer {trainer!r} must be a mapping")
    config = parse(DataConfig, values, str(path), "data" if "data" in stage else "")
    return config, trainer.get("seed", 42), stage.get("taxonomy")
