"""Run the main job on the embedded world, on the CPU, and show the result: a table, metrics.json and report.html."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from safety_modules.errors import user_errors_exit
from safety_modules.reporting import report
from train.experiments import demo


def main(args: list[str] | None = None) -> None:
    """Parse, run, write the report, print."""
    parser = argparse.ArgumentParser(prog="scripts.demo", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--short", action="store_true", help="a fiftieth of the data: shows that it runs; misses targets"
    )
    parser.add_argument("--seed", type=int, default=0, help="of world and training (default: %(default)s)")
    options = parser.parse_args(args)
    with user_errors_exit():
        results = demo.run(options.output, options.short, options.seed)
        report.write(results, options.output / "report.html")
    console = Console()
    console.print(report.table(results))
    console.print(f"numbers: {options.output}/metrics.json\nreport:  {options.output}/report.html", highlight=False)


if __name__ == "__main__":
    main()
