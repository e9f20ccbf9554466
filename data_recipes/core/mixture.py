"""Mixture: which rows of which data sets a stage is trained on, the same for a seed on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from rich.console import Console

from data_recipes.core.data_config import DataConfig
from data_recipes.core.rows import Rows
from data_recipes.core.splits import hash_choice
from safety_modules.sample import DataError
from safety_modules.tables import terminal_table
from safety_modules.taxonomy import CLEAN, Taxonomy


@dataclass(frozen=True)
class SourceCounts:
    """How many rows of one source are in a mixture."""

    recipe: str
    split: str
    read: int  # rows of the source, after its limit
    used: int  # rows in the mixture, repeated ones counted each time
    bad: int  # rows that break a rule
    left_out: int  # rows that the user's labels leave out
    labels: dict[str, int]  # "type:level" -> rows used
    faults: list[str] = field(default_factory=list)  # "source: reason" of the bad rows

    def to_dict(self) -> dict:
        """Plain values, without the faults."""
        return {name: value for name, value in asdict(self).items() if name != "faults"}


def mix(
    config: DataConfig, taxonomy: Taxonomy, seed: int = 0, answers: bool = True, open_images: bool = True
) -> tuple[Rows, list[SourceCounts]]:
    """The rows to train on, and the counts of each source.

    First each source's weight is applied, then the balance of risky types, then the fraction of clean rows. Which rows
    are taken depends on the seed and on their places in their sets, on nothing else.

    `balance` 0 leaves the risky types as they are, 1 makes them equally frequent; in between their counts are in
    proportion to n ** (1 - balance). Their sum stays: rare types are repeated, each row at most `max_repeats` times,
    frequent ones thinned out. For `clean_fraction`, the side with too many rows is thinned out.

    Args:
        answers: whether each row needs one; to train a head alone it does not.
        open_images: where a source skips bad rows, also skip those whose image cannot be decoded.

    Raises:
        DataError: a source cannot be read, or no row is left.
    """
    parts, readers = zip(*(source.read(config.root, taxonomy, True, answers, open_images) for source in config.train))
    rows = Rows.join(parts)
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # source of each row
    times = [
        row_repeats(len(part), source.weight, f"{seed} {number}")
        for number, (part, source) in enumerate(zip(parts, config.train))
    ]
    places = np.repeat(np.arange(len(rows)), np.concatenate(times))
    places = _balance_types(places, rows, config, seed)
    places = _limit_clean_fraction(places, rows, config.clean_fraction, seed)
    if not len(places):
        raise DataError("the mixture has no rows; raise a weight, or name another source")
    counts = []
    for number, (source, part, reader) in enumerate(zip(config.train, parts, readers)):
        used = rows.take(places[owners[places] == number])
        labels = {f"{risk_type}:{level}": count for (risk_type, level), count in sorted(used.counts().items())}
        numbers = (len(part), len(used), len(reader.faults), reader.left_out)
        counts.append(SourceCounts(source.recipe, source.split, *numbers, labels, reader.faults))
    return rows.take(places), counts


def row_repeats(count: int, weight: float, name: str) -> np.ndarray:
    """How often each of `count` rows is taken: the weight, rounded up for rows drawn by `name`, else down.

    Returns:
        (count,) whole numbers, whose sum is count * weight, rounded.
    """
    times = np.full(count, int(weight))
    times[hash_choice(count, round(count * (weight - int(weight))), name)] += 1
    return times


def _balance_types(places: np.ndarray, rows: Rows, config: DataConfig, seed: int) -> np.ndarray:
    """Places with the risky types repeated or thinned out."""
    types = np.array([label[0] for label in rows.labels])[rows.codes[places]]
    names = [name for name in dict.fromkeys(types.tolist()) if name != CLEAN]
    counts = np.array([(types == name).sum() for name in names], float)
    if not config.balance or len(names) < 2:
        return places
    targets = counts ** (1 - config.balance)
    targets = targets / targets.sum() * counts.sum()
    balanced = [places[types == CLEAN]]
    for name, count, target in zip(names, counts, targets):
        of_type = places[types == name]
        weight = min(target / count, config.max_repeats)
        balanced.append(np.repeat(of_type, row_repeats(len(of_type), weight, f"{seed} balance {name}")))
    return np.sort(np.concatenate(balanced), kind="stable")


def _limit_clean_fraction(places: np.ndarray, rows: Rows, fraction: float | None, seed: int) -> np.ndarray:
    """Places without the surplus of clean or risky rows."""
    if fraction is None:
        return places
    is_clean = np.array([label[0] == CLEAN for label in rows.labels])[rows.codes[places]]
    clean, risky = int(is_clean.sum()), int((~is_clean).sum())
    if not clean or not risky:
        raise DataError(
            f"clean_fraction {fraction:g} needs clean and risky rows, the mixture has {clean} and {risky}; add a source"
        )
    if clean > (clean + risky) * fraction:
        kept, surplus_side = round(risky * fraction / (1 - fraction)), is_clean
    else:
        kept, surplus_side = round(clean * (1 - fraction) / fraction), ~is_clean
    side = np.flatnonzero(surplus_side)
    return np.delete(places, np.setdiff1d(side, side[hash_choice(len(side), kept, f"{seed} share")]))


def total_labels(counts: Sequence[SourceCounts]) -> dict[str, int]:
    """Rows of the mixture by "type:level"."""
    return dict(sorted(sum((Counter(source.labels) for source in counts), Counter()).items()))


def print_mixture(counts: Sequence[SourceCounts]) -> None:
    """Print the rows of each source by type and level, and the fraction of each label in the whole."""
    labels = total_labels(counts)
    rows = sum(labels.values())
    header = ("type:level", *(f"{source.recipe} {source.split}" for source in counts), "all", "fraction")
    lines = [
        [label, *(f"{source.labels.get(label, 0):,}" for source in counts), f"{count:,}", f"{count / rows:.1%}"]
        for label, count in labels.items()
    ]
    for name in ("used", "read", "bad", "left_out"):
        numbers = [getattr(source, name) for source in counts]
        if name in ("used", "read") or any(numbers):
            lines.append([name.replace("_", " "), *(f"{number:,}" for number in (*numbers, sum(numbers))), ""])
    Console().print(terminal_table(f"{rows:,} rows to train on", header, lines, numbers=True))
