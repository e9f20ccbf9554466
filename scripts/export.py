"""Merge a trained folder into one that stock software loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from safety_modules.errors import user_errors_exit
from safety_modules.export import export


def main(args: list[str] | None = None) -> None:
    """Parse, export, print the folder."""
    parser = argparse.ArgumentParser(prog="scripts.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="what training wrote, e.g. runs/stage2/final")
    parser.add_argument("output", type=Path, help="the new folder; it appears whole or not at all")
    parser.add_argument("--base", help="where the base model is now, if it has moved")
    parser.add_argument("--dtype", default="auto", help="of the base's weights: auto, float32, bfloat16, float16")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    options = parser.parse_args(args)
    with user_errors_exit():
        print(export(options.folder, options.output, options.base, options.dtype, options.overwrite))


if __name__ == "__main__":
    main()
