"""Give a trained checkpoint other categories: shared names keep what they learned, new ones start untrained."""

from __future__ import annotations

import argparse
from pathlib import Path

from safety_modules.checkpoints.extend import extend
from safety_modules.errors import user_errors_exit
from safety_modules.taxonomy import Taxonomy


def main(args: list[str] | None = None) -> None:
    """Parse, extend, print what changed and what to do next."""
    parser = argparse.ArgumentParser(prog="safety_modules.cli.extend", description=__doc__)
    parser.add_argument("folder", type=Path, help="an exported or trained folder")
    parser.add_argument("output", type=Path, help="the new folder, to train on from")
    parser.add_argument("--taxonomy", type=Path, required=True, help="YAML of the new categories")
    options = parser.parse_args(args)
    with user_errors_exit():
        types, levels = extend(options.folder, options.output, Taxonomy.from_yaml(options.taxonomy))
    print(f"types   {types}\nlevels  {levels}\n{options.output}")
    if types.added or levels.added:
        print(
            "New categories are untrained: go on with train.run --modules on rows that have them, then scripts.calibrate."
        )


if __name__ == "__main__":
    main()
