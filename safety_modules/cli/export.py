"""Merge a trained folder into one that stock software loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from safety_modules.checkpoints.export import export
from safety_modules.checkpoints.merge_report import MergeReport
from safety_modules.errors import user_errors_exit


def main(args: list[str] | None = None) -> None:
    """Parse, export, print the folder and what merging changed."""
    parser = argparse.ArgumentParser(prog="safety_modules.cli.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="what training wrote, e.g. runs/stage2/final")
    parser.add_argument("output", type=Path, help="the new folder; it appears whole or not at all")
    parser.add_argument("--base", help="where the base model is now, if it has moved")
    parser.add_argument("--dtype", default="auto", help="of the base's weights: auto, float32, bfloat16, float16")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare logits before and after merging; with a 7B model on a CPU this takes minutes",
    )
    options = parser.parse_args(args)
    with user_errors_exit():
        folder = export(options.folder, options.output, options.base, options.dtype, options.overwrite, options.check)
        if report := MergeReport.read(folder):
            print(
                f"logits at {report.positions} text positions, against the adapter beside the weights it was trained on:"
            )
            for name, gap in report.rows():
                print(
                    f"  {name}: largest difference {gap.max:.2g}, mean {gap.mean:.2g}, same greedy token {gap.same:.1%}"
                )
        print(folder)


if __name__ == "__main__":
    main()
