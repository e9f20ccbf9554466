"""Give a trained checkpoint other categories: shared names keep their weights, new ones start untrained."""

from __future__ import annotations

import argparse
from pathlib import Path

from safety_modules.cli import options as common
from safety_modules.taxonomy import Taxonomy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("folder", type=Path, help="an exported or trained folder")
    parser.add_argument("output", type=Path, help="the new folder, from which training is continued")
    parser.add_argument("--taxonomy", type=common.file, required=True, help="YAML of the new categories")


def run(options: argparse.Namespace) -> None:
    """Extend, print what changed and the next step."""
    from safety_modules.checkpoints.extend import extend

    types, levels = extend(options.folder, options.output, Taxonomy.from_yaml(options.taxonomy))
    print(f"types   {types}\nlevels  {levels}\n{options.output}")
    if types.added or levels.added:
        print(
            "New categories are untrained: train them with train.run --modules on rows that have them, then run "
            "`safety-modules calibrate`."
        )
