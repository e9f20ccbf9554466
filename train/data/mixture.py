"""Mixture: the rows of a stage, with nothing in them that it is measured on."""

from __future__ import annotations

import logging
from pathlib import Path

from data_recipes.core import held_out
from data_recipes.core.held_out import HeldOut
from data_recipes.core.mixture import Part, mix
from data_recipes.core.rows import Rows
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy
from train.config import DataConfig

logger = logging.getLogger(__name__)
SHOWN = 5


def read_train(config: DataConfig, taxonomy: Taxonomy, seed: int, answers: bool = True) -> tuple[Rows, list[Part]]:
    """The rows to train on, and what each source gave.

    Args: answers: whether each row needs one; a head alone needs none.
    """
    return mix(
        config.train, config.root, taxonomy, config.balance, config.clean_fraction, config.max_repeats, seed, answers
    )


def read_validation(config: DataConfig, taxonomy: Taxonomy) -> Rows:
    """The rows that training is watched on, one source after another."""
    return Rows.join([source.read(config.root, taxonomy, training=False)[0] for source in config.validation])


def check_leaks(config: DataConfig, taxonomy: Taxonomy, train: Rows, validation: Rows) -> None:
    """Stop where an image to train on is one to measure on, under whatever name.

    Held out are the validation sources, the test splits of the training sources where they are on disk, and the files in
    `held_out`. Files are compared here; images that only look the same are found by `python -m data_recipes check`.

    Raises:
        DataError: names the rows.
    """
    held = HeldOut()
    held.add(held_out.mark(image, "validation") for image in held_out.images(validation))
    for name in config.held_out:
        held.add(held_out.read(Path(name).expanduser()))
    for source in config.train:
        for split, rows in source.test_splits(config.root, taxonomy):
            held.add(held_out.mark(image, split) for image in held_out.images(rows))
    sources = held_out.images(train) if held.marks else {}  # reads every row
    found = held.exact(sources)
    if found:
        lines = [f"{sources[p]}: {p.name} is {mark.name} of {mark.split}" for p, mark in list(found.items())[:SHOWN]]
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        remedy = "remove them from the training data, or from what is held out"
        raise DataError(
            "\n".join([f"{len(found)} images to train on are held out for measuring; {remedy}", *lines, *more])
        )
    logger.info("no image to train on is among the %d held out", len(held.marks))
