"""Ablate the method on the embedded world: one row for each change, and the table in docs/ablations.md."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from safety_modules.errors import user_errors_exit
from train.experiments import ablations
from train.experiments.ablation_rows import FULL, SHORT
from train.experiments.harness import write_table


def main(args: list[str] | None = None) -> None:
    """Parse, run the seeds, collect all results in the folder, write the table."""
    parser = argparse.ArgumentParser(prog="scripts.ablate", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/ablate"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of world and training, one run each (default: 0)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of the run (default: one for each core)")
    parser.add_argument("--short", action="store_true", help="few rows and steps: shows that it runs; misses targets")
    parser.add_argument("--docs", type=Path, default=Path("docs/ablations.md"), help="page whose table is replaced")
    options = parser.parse_args(args)
    with user_errors_exit():
        for seed in options.seeds:
            ablations.run(options.output, seed, SHORT if options.short else FULL, options.processes)
        results, table = ablations.collect(options.output)
        if not options.short:
            write_table(options.docs, table)
    print(f"{table}{len(results)} rows: {options.output / 'results.json'}")


if __name__ == "__main__":
    main()
