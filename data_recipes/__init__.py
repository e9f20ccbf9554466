"""Recipes: one file per data set; the file's name is the recipe's name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from data_recipes.sample import DataError, Sample
from safety_modules.taxonomy import Taxonomy, TaxonomyError, nearest


def names() -> list[str]:
    """Every recipe: the files and folders here but `sample` and those with a leading underscore."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "sample" and module.name[0] != "_")


def load(name: str, root: str | Path, split: str, taxonomy: Taxonomy) -> list[Sample]:
    """The rows of one split of a data set, none of which has a label outside the taxonomy.

    Args:
        name: of the recipe.
        root: where the data set lies; what may lie there is in the recipe's docstring.
        split: as the recipe names it.
        taxonomy: categories and levels that the labels are taken from.

    Raises:
        DataError: the recipe is unknown, the split is empty, a row breaks a rule or its label is not of the taxonomy.
    """
    if name not in names():
        raise DataError(f"unknown recipe {name!r}; {nearest(name, names())}")
    samples = import_module(f"data_recipes.{name}").samples(Path(root), split, taxonomy)
    if not samples:
        raise DataError(f"recipe {name!r} has no rows in split {split!r} of {root}; name another split or add rows to it")
    for sample in samples:
        try:
            taxonomy.check(sample.risk_type, sample.risk_level)
        except TaxonomyError as error:
            raise DataError(f"{sample.source}: {error}") from error
    return samples
