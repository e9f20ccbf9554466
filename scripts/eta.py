"""Measure ETA on the embedded world: base and trained model, each with and without it, other defences, and its cost."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from safety_modules.errors import user_errors_exit
from safety_modules.reporting import report
from train.experiments import eta_study
from train.experiments.harness import write_table


def main(args: list[str] | None = None) -> None:
    """Parse, run, write the report, print."""
    parser = argparse.ArgumentParser(prog="scripts.eta", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/eta"), help="folder of the run (default: runs/eta)")
    parser.add_argument(
        "--world",
        type=Path,
        default=Path("runs/control"),
        help="folder of scripts.control, whose world and trained models are used (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of world and training (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="few rows and steps: shows that it runs; misses targets")
    parser.add_argument("--docs", type=Path, default=Path("docs/eta.md"), help="page whose table is replaced")
    options = parser.parse_args(args)
    with user_errors_exit():
        scale = eta_study.SHORT if options.short else eta_study.FULL
        results, table = eta_study.run(options.output, options.world, options.seed, scale)
        if not options.short:
            write_table(options.docs, table)
        report.write(results, options.output / "report.html")
    console = Console()
    console.print(report.table(results))
    console.print(f"numbers: {options.output}/metrics.json\nreport:  {options.output}/report.html", highlight=False)


if __name__ == "__main__":
    main()
