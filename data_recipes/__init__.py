"""Recipes: one file per data set; the file's name is the recipe's name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import Taxonomy, TaxonomyError, nearest

if TYPE_CHECKING:
    from data_recipes.core.about import About
    from data_recipes.core.reading import Reading
    from data_recipes.core.rows import Rows

CARVED = "validation"
ROOMS = ("core", "inspection", "readers")  # what recipes are made of


def names() -> list[str]:
    """Every recipe: a file or folder here that is not one of ROOMS and has no leading underscore."""
    return sorted(
        module.name for module in iter_modules(__path__) if module.name not in ROOMS and module.name[0] != "_"
    )


def about(name: str) -> About:
    """Provenance, licence and splits of a recipe's data; an unknown name is a DataError with the nearest valid one."""
    return _module(name).ABOUT


def load(name: str, root: str | Path, split: str, taxonomy: Taxonomy) -> Rows:
    """The rows of one split of a data set, read strictly and not to be trained on; see `read`."""
    from data_recipes.core.reading import Reading

    return read(name, root, split, Reading(taxonomy), training=False)


def read(name: str, root: str | Path, split: str, reading: Reading, training: bool) -> Rows:
    """The rows of one split of a data set, none of which has a label outside the taxonomy.

    Args:
        name: of the recipe.
        root: where the data set lies; what may lie there is in the recipe's docstring.
        split: as the recipe names it. Where its `ABOUT.carve` names a split, "validation" is about a tenth of that one's
            images, by a hash of their names; that split alone is the rest, and "train+validation" all of it.
        reading: labels, texts, and what to do with rows that break a rule.
        training: that the rows are for; refused where the data set is for evaluation alone.

    Raises:
        DataError: the recipe or split is unknown, the split is empty, the data set may not be trained on, a row breaks a rule
            or its label is not of the taxonomy.
    """
    from data_recipes.core.rows import Rows
    from data_recipes.core.splits import carve

    module = _module(name)
    known = module.ABOUT
    if training and known.evaluation_only:
        raise DataError(
            f"recipe {name!r} is for evaluation only: {known.evaluation_only}. Licence: {known.licence}. Remove it from the "
            "training sources; to measure on it, name it in scripts.evaluate or in data.validation"
        )
    if training and split.startswith("test"):
        raise DataError(
            f"recipe {name!r}: split {split!r} is for measuring and may not be trained on; name another split"
        )
    wanted = split
    if known.carve and split in (CARVED, known.carve, f"{known.carve}+{CARVED}"):
        wanted = known.carve
    if known.splits and wanted not in known.splits:
        valid = [*known.splits, *([CARVED, f"{known.carve}+{CARVED}"] if known.carve else [])]
        raise DataError(f"recipe {name!r} has no split {split!r}; {nearest(split, valid)}")
    samples = module.samples(root if str(root).startswith("hf:") else Path(root), wanted, reading)
    if known.carve and split in (CARVED, known.carve):
        samples = carve(samples, split == CARVED)
    if not len(samples):
        raise DataError(
            f"recipe {name!r} has no rows in split {split!r} of {root}; name another split or add rows to it"
        )
    reading.check_labels()
    rows = reading.readable(Rows.of(samples), root) if reading.open_images else Rows.of(samples)
    for label in rows.labels:
        try:
            reading.taxonomy.check(*label)
        except TaxonomyError as error:
            first = next(sample.source for sample in rows if (sample.risk_type, sample.risk_level) == label)
            raise DataError(f"{first}: {error}") from error
    return rows


def _module(name: str):  # noqa: ANN202 - a recipe
    if name not in names():
        raise DataError(f"unknown recipe {name!r}; {nearest(name, names())}")
    return import_module(f"data_recipes.{name}")


__all__ = ["DataError", "Sample", "about", "load", "names", "read"]
