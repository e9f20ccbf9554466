"""Merge a trained folder into one that stock software loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from safety_modules.devices import DTYPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("folder", type=Path, help="what training wrote, such as runs/stage2/final")
    parser.add_argument("output", type=Path, help="the new folder; it appears whole or not at all")
    parser.add_argument("--base", help="folder or hub name of the base model, where it has moved")
    text = "of the written base weights; auto: as stored (%(default)s)"
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder if it exists")
    text = "compare logits before and after merging; with a 7B model on a CPU this takes minutes (on)"
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help=text)


def run(options: argparse.Namespace) -> None:
    """Export, print what merging changed and the folder."""
    from safety_modules.checkpoints.export import export
    from safety_modules.checkpoints.merge_report import MergeReport

    folder = export(options.folder, options.output, options.base, options.dtype, options.overwrite, options.check)
    if report := MergeReport.read(folder):
        print(f"logits at {report.positions} text positions, against the adapter beside the weights it was trained on:")
        for name, gap in report.rows():
            print(f"  {name}: largest difference {gap.max:.2g}, mean {gap.mean:.2g}, same greedy token {gap.same:.1%}")
    print(folder)
