"""Leaks: what a mixture is measured on, so that none of it is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from data_recipes.core import held_out
from data_recipes.core.data_config import DataConfig
from data_recipes.core.held_out import HeldOut
from data_recipes.core.rows import Rows
from data_recipes.inspection.survey import looks
from safety_modules.taxonomy import Taxonomy


@dataclass
class Measured:
    """The images that a mixture is measured on.

    Attributes:
        held: their marks.
        faults: "source: reason" of rows and images of the validation sources and test splits that cannot be used.
    """

    held: HeldOut = field(default_factory=HeldOut)
    faults: list[str] = field(default_factory=list)

    def add(self, rows: Rows, split: str, workers: int) -> None:
        """Hold the images of these rows out; each is opened once."""
        for look in looks(held_out.images(rows), workers):
            if look.mark:
                self.held.add([replace(look.mark, split=split)])
            else:
                self.faults.append(f"{split} {look.source}: {look.name}: {look.fault}")


def measured(config: DataConfig, taxonomy: Taxonomy, workers: int) -> Measured:
    """Validation sources, the test splits of the training sources as far as they are on disk, and the files in `held_out`."""
    found = Measured()
    for source in config.validation:
        rows, reading = replace(source, bad_rows="skip").read(config.root, taxonomy, training=False, open_images=False)
        found.faults += [f"{source.recipe} {source.split} {fault}" for fault in reading.faults]
        found.add(rows, f"{source.recipe} {source.split}", workers)
    for source in config.train:
        for split, rows in source.test_splits(config.root, taxonomy):
            found.add(rows, split, workers)
    for name in config.held_out:
        found.held.add(held_out.read(Path(name).expanduser()))
    return found
