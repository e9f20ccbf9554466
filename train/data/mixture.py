"""The rows of a stage, without any image that it is measured on."""

from __future__ import annotations

import logging
from pathlib import Path

from data_recipes.core.data_config import DataConfig
from data_recipes.core.held_out import HeldOutImages, fingerprint, images_of, read_fingerprints
from data_recipes.core.mixture import SourceCounts, mix
from data_recipes.core.rows import Rows
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy

logger = logging.getLogger(__name__)
SHOWN = 5


def read_train(
    config: DataConfig, taxonomy: Taxonomy, seed: int, answers: bool = True
) -> tuple[Rows, list[SourceCounts]]:
    """The rows to train on, and what each source gave.

    Args:
        answers: whether each row needs one; a head alone needs none.
    """
    return mix(config, taxonomy, seed, answers)


def read_validation(config: DataConfig, taxonomy: Taxonomy) -> Rows:
    """The rows that the head is measured on during training, one source after another."""
    return Rows.join([source.read(config.root, taxonomy, training=False)[0] for source in config.validation])


def check_leaks(config: DataConfig, taxonomy: Taxonomy, train: Rows, validation: Rows) -> None:
    """Stop where an image to train on is also one to measure on, under whatever name.

    Held out are the validation sources, the test splits of the training sources where they are on disk, and the files
    in `held_out`. Files are compared here; images that only look the same are found by `python -m data_recipes check`.

    Raises:
        DataError: names the rows.
    """
    held = HeldOutImages()
    held.add(fingerprint(image, "validation") for image in images_of(validation))
    for name in config.held_out:
        held.add(read_fingerprints(Path(name).expanduser()))
    for source in config.train:
        for split, rows in source.test_splits(config.root, taxonomy):
            held.add(fingerprint(image, split) for image in images_of(rows))
    sources = images_of(train) if held.fingerprints else {}  # reads every row
    leaks = held.exact_matches(sources)
    if leaks:
        lines = [f"{sources[p]}: {p.name} is {copy.name} of {copy.split}" for p, copy in list(leaks.items())[:SHOWN]]
        more = [f"and {len(leaks) - SHOWN} more"] if len(leaks) > SHOWN else []
        remedy = "remove them from the training data, or from what is held out"
        raise DataError("\n".join([f"{len(leaks)} images to train on are held out; {remedy}", *lines, *more]))
    logger.info("no image to train on is among the %d held out", len(held.fingerprints))
