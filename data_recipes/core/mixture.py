"""Mixture: which rows of which data sets a stage is trained on, the same for a seed on every machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import data_recipes
from data_recipes.core.reading import Reading
from data_recipes.core.rows import Label, Rows
from data_recipes.core.splits import share
from data_recipes.readers import hub
from safety_modules.sample import DataError
from safety_modules.taxonomy import CLEAN, Taxonomy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        recipe: a file name of data_recipes.
        root: its folder, or hf://datasets/owner/name; None for the folder `data.root`/recipe, or `data.root` itself for the
            recipe `custom`.
        split: as the recipe names it; "validation" too, where the recipe says so, and "train+validation" for both.
        limit: at most so many rows, spread evenly over the set; None for all.
        weight: how often each row is taken, from 0: 2 is twice, 0.5 every second one.
        labels: category of the data set -> `type`, `type:level`, or null to leave its rows out; over the recipe's own map.
        language: of questions and answers for rows that have none: a file name of data_recipes/texts, or a path.
        bad_rows: "error" stops at rows that break a rule, "skip" leaves them out and counts them; for that it opens every
            image once, in as many threads as there are cores.
        stream: read no more than the first so many rows of a hub data set; null to fetch it whole.
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
        if not is_number(self.weight) or not 0 <= self.weight < float("inf"):
            raise DataError(f"source {self.recipe!r}: weight {self.weight!r} must be a number from 0")
        if not isinstance(self.labels, dict):
            raise DataError(
                f"source {self.recipe!r}: labels {self.labels!r} must map categories of the data set to types"
            )
        for name in ("limit", "stream"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise DataError(
                    f"source {self.recipe!r}: {name} {value!r} must be at least 1; leave it out for all rows"
                )

    def place(self, root: str | Path) -> str | Path:
        """Where the data lies, `root` being the folder of all data."""
        if self.root is not None:
            return self.root if hub.on_hub(self.root) else Path(self.root).expanduser()
        folder = Path(root).expanduser()
        return folder if self.recipe == "custom" else folder / self.recipe

    def read(
        self, root: str | Path, taxonomy: Taxonomy, training: bool, answers: bool = False, open_images: bool = True
    ) -> tuple[Rows, Reading]:
        """Its rows, at most `limit`, and how they were read.

        Args:
            training: what they are for.
            answers: whether each row needs one.
            open_images: where bad rows are skipped, skip those whose image cannot be decoded, too.
        """
        reading = Reading(taxonomy, self.labels, self.bad_rows, self.language, answers, self.stream)
        reading.open_images = open_images and self.bad_rows == "skip"
        rows = data_recipes.read(self.recipe, self.place(root), self.split, reading, training)
        return rows.spread(self.limit), reading

    def test_splits(self, root: str | Path, taxonomy: Taxonomy) -> list[tuple[str, Rows]]:
        """The test splits of its data set, as far as they can be read: "recipe split" and rows."""
        found = []
        known = data_recipes.about(self.recipe).splits
        for split in known or ("test",):  # the user's own data may have one
            if split.startswith("test") and split != self.split:
                labels = {
                    name: value or CLEAN for name, value in self.labels.items()
                }  # rows left out count as measured on, too
                reading = Reading(taxonomy, labels, "skip", self.language, stream=self.stream, every_label=False)
                try:
                    rows = data_recipes.read(self.recipe, self.place(root), split, reading, training=False)
                    found.append((f"{self.recipe} {split}", rows))
                except DataError as error:
                    log = logger.warning if known else logger.debug
                    log("held out: %s has no readable split %r: %s", self.recipe, split, error)
        return found


@dataclass(frozen=True)
class Part:
    """What one source gave to a mixture.

    Attributes:
        recipe, split: of the source.
        read: rows that it has, after its limit.
        used: that went into the mixture, repeated ones counted each time.
        bad, left_out: rows that break a rule, and that the user's labels leave out.
        labels: "type:level" -> rows used.
        faults: "source: reason" of the bad rows.
    """

    recipe: str
    split: str
    read: int
    used: int
    bad: int
    left_out: int
    labels: dict[str, int]
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Plain values, without the faults."""
        return {name: value for name, value in asdict(self).items() if name != "faults"}


def mix(
    sources: Sequence[Source],
    root: str | Path,
    taxonomy: Taxonomy,
    balance: float = 0.0,
    clean_fraction: float | None = None,
    max_repeats: int = 10,
    seed: int = 0,
    answers: bool = True,
    open_images: bool = True,
) -> tuple[Rows, list[Part]]:
    """The rows to train on, and what each source gave.

    First each source's weight, then the balance of risky types, then the share of clean rows. Which rows are taken depends on
    the seed and on their places in their sets, on nothing else.

    Args:
        balance: 0 leaves the risky types as they are, 1 makes them equally frequent, and between the two their counts are
            n ** (1 - balance) to each other; together they stay as many. Rare ones are repeated, frequent ones thinned out.
        max_repeats: for the balance no row is repeated more often.
        clean_fraction: of the mixture, in (0, 1); the side with too many rows is thinned out. None leaves it as it is.
    """
    parts, readings = zip(*(source.read(root, taxonomy, True, answers, open_images) for source in sources))
    rows = Rows.join(parts)
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    times = np.concatenate(
        [_times(len(part), source.weight, f"{seed} {i}") for i, (part, source) in enumerate(zip(parts, sources))]
    )
    places = np.repeat(np.arange(len(rows)), times)
    places = _balanced(places, rows, balance, max_repeats, seed)
    places = _shared(places, rows, clean_fraction, seed)
    if not len(places):
        raise DataError("the mixture has no rows; raise a weight, or name another source")
    found = []
    for i, (source, part, reading) in enumerate(zip(sources, parts, readings)):
        taken = rows.take(places[owner[places] == i])
        labels = {f"{risk_type}:{level}": count for (risk_type, level), count in sorted(taken.counts().items())}
        counts = (len(part), len(taken), len(reading.faults), reading.left_out)
        found.append(Part(source.recipe, source.split, *counts, labels, reading.faults))
    return rows.take(places), found


def _times(count: int, weight: float, name: str) -> np.ndarray:
    """How often each of `count` rows is taken: weight, rounded down or up so that the sum is right."""
    times = np.full(count, int(weight))
    rest = round(count * (weight - int(weight)))
    times[_chosen(count, rest, name)] += 1
    return times


def _balanced(places: np.ndarray, rows: Rows, balance: float, repeats: int, seed: int) -> np.ndarray:
    types = np.array([label[0] for label in rows.labels])[rows.codes[places]]
    names = [name for name in dict.fromkeys(types.tolist()) if name != CLEAN]
    counts = np.array([(types == name).sum() for name in names], float)
    if not balance or len(names) < 2:
        return places
    wanted = counts ** (1 - balance)
    wanted = wanted / wanted.sum() * counts.sum()
    kept = [places[types == CLEAN]]
    for name, count, want in zip(names, counts, wanted):
        own = places[types == name]
        kept.append(np.repeat(own, _times(len(own), min(want / count, repeats), f"{seed} balance {name}")))
    return np.sort(np.concatenate(kept), kind="stable")


def _shared(places: np.ndarray, rows: Rows, part: float | None, seed: int) -> np.ndarray:
    if part is None:
        return places
    clean = np.array([label[0] == CLEAN for label in rows.labels])[rows.codes[places]]
    number, risky = int(clean.sum()), int((~clean).sum())
    if not number or not risky:
        raise DataError(
            f"clean_fraction {part:g} needs clean and risky rows, the mixture has {number} and {risky}; add a source"
        )
    if number > (number + risky) * part:
        kept, side = round(risky * part / (1 - part)), clean
    else:
        kept, side = round(number * (1 - part) / part), ~clean
    own = np.flatnonzero(side)
    out = np.setdiff1d(own, own[_chosen(len(own), kept, f"{seed} share")])
    return np.delete(places, out)


def _chosen(count: int, wanted: int, name: str) -> np.ndarray:
    """`wanted` of `count` places, drawn by a hash of each place: the same on every machine and version of numpy."""
    start = np.uint64(int(share(name) * 2**53))
    with np.errstate(over="ignore"):  # splitmix64, whose arithmetic wraps
        state = (np.arange(count, dtype=np.uint64) + start + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.sort(np.argsort(state ^ (state >> np.uint64(31)), kind="stable")[:wanted])


def total(parts: Sequence[Part]) -> dict[Label, int]:
    """Rows of the mixture by "type:level"."""
    found: dict[str, int] = {}
    for part in parts:
        for label, count in part.labels.items():
            found[label] = found.get(label, 0) + count
    return dict(sorted(found.items()))


def is_number(value: object) -> bool:
    """Whether a value of a YAML file is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
