"""Recipes: one file for each data set; the file's name is the recipe's name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING

from safety_modules.errors import nearest
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import Taxonomy, TaxonomyError

if TYPE_CHECKING:
    from data_recipes.core.about import About
    from data_recipes.core.reading import RowReader
    from data_recipes.core.rows import Rows

CARVED = "validation"
ROOMS = ("core", "inspection", "readers")  # folders here that are not recipes


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
    from data_recipes.core.reading import RowReader

    return read(name, root, split, RowReader(taxonomy), training=False)


def read(name: str, root: str | Path, split: str, reader: RowReader, training: bool) -> Rows:
    """The rows of one split of a data set, all of whose labels are in the taxonomy.

    Args:
        name: of the recipe.
        root: of the data; its expected layout is in the recipe's docstring.
        split: as the recipe names it. Where its `ABOUT.carve` names a split, "validation" is about a tenth of its
            images, by a hash of their names; that split alone is the rest, and "train+validation" all of it.
        reader: labels, texts, and what to do with rows that break a rule.
        training: whether the rows are trained on; an error where the data set is for evaluation alone.

    Raises:
        DataError: the recipe or split is unknown, the split is empty, the data set may not be trained on, or a row
            breaks a rule or has a label that is not in the taxonomy.
    """
    from data_recipes.core.rows import Rows
    from data_recipes.core.splits import carve

    module = _module(name)
    if training:
        _check_training(name, split, module.ABOUT)
    carved = module.ABOUT.carve
    samples = module.samples(
        root if str(root).startswith("hf:") else Path(root), _published_split(name, split, module.ABOUT), reader
    )
    if carved and split in (CARVED, carved):
        samples = carve(samples, split == CARVED)
    if not len(samples):
        raise DataError(
            f"recipe {name!r} has no rows in split {split!r} of {root}; name another split or add rows to it"
        )
    reader.check_labels_used()
    rows = reader.decodable(Rows.of(samples), root) if reader.open_images else Rows.of(samples)
    for label in rows.labels:
        try:
            reader.taxonomy.check(*label)
        except TaxonomyError as error:
            source = next(sample.source for sample in rows if (sample.risk_type, sample.risk_level) == label)
            raise DataError(f"{source}: {error}") from error
    return rows


def _check_training(name: str, split: str, about: About) -> None:
    """Check that a split may be trained on."""
    if about.evaluation_only:
        raise DataError(
            f"recipe {name!r} is for evaluation only: {about.evaluation_only}. Licence: {about.licence}. Remove it "
            "from the training sources; to measure on it, name it in `safety-modules evaluate` or in data.validation"
        )
    if split.startswith("test"):
        raise DataError(
            f"recipe {name!r}: split {split!r} is for measuring and may not be trained on; name another split"
        )


def _published_split(name: str, split: str, about: About) -> str:
    """The split of the recipe that holds a split, which may be carved out of it."""
    carved = (CARVED, f"{about.carve}+{CARVED}") if about.carve else ()
    if about.splits and split not in (*about.splits, *carved):
        raise DataError(f"recipe {name!r} has no split {split!r}; {nearest(split, (*about.splits, *carved))}")
    return about.carve if split in carved else split


def _module(name: str) -> ModuleType:
    if name not in names():
        raise DataError(f"unknown recipe {name!r}; {nearest(name, names())}")
    return import_module(f"data_recipes.{name}")


__all__ = ["DataError", "Sample", "about", "load", "names", "read"]
