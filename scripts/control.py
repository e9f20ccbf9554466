"""Measure the controls on the embedded world: calibration, policy, switch, hints and new categories."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from safety_modules.errors import user_errors_exit
from safety_modules.reporting import report
from train.experiments import control
from train.experiments.harness import write_table


def main(args: list[str] | None = None) -> None:
    """Parse, run the seeds, collect all results in the folder, write the report, print."""
    parser = argparse.ArgumentParser(prog="scripts.control", description=__doc__)
    text = "folder of the run (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("runs/control"), help=text)
    text = "of world and training, one run each (default: 0)"
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help=text)
    parser.add_argument("--short", action="store_true", help="few rows and steps: shows that it runs; misses targets")
    parser.add_argument("--docs", type=Path, default=Path("docs/control.md"), help="page whose table is replaced")
    options = parser.parse_args(args)
    with user_errors_exit():
        scale = control.SHORT if options.short else control.FULL
        for seed in options.seeds:
            control.run(options.output, seed, scale)
        results, table = control.collect(options.output, scale)
        if not options.short:
            write_table(options.docs, table)
        report.write(results, options.output / "report.html")
    console = Console()
    console.print(report.table(results))
    console.print(f"numbers: {options.output}/metrics.json\nreport:  {options.output}/report.html", highlight=False)


if __name__ == "__main__":
    main()
