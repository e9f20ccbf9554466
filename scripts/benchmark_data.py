"""Measure the data side: opening a large LLaVA JSON, loading rows against decoding alone, auditing against the tower alone."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from safety_modules.files import write_text
from train.benchmarks import data_loading


def main(args: list[str] | None = None) -> None:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(prog="scripts.benchmark_data", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/benchmark-data"), help="folder of files made and of results"
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the LLaVA JSON (default: %(default)s)")
    parser.add_argument("--images", type=int, default=400, help="640 x 480 JPEGs (default: %(default)s)")
    parser.add_argument("--audited", type=int, default=128, help="of them (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of the loader (default: %(default)s)")
    options = parser.parse_args(args)
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}, pillow {version('pillow')}",
        **data_loading.opening(options.output, options.rows),
        **data_loading.loading(options.output, options.images, options.workers),
        **data_loading.auditing(options.output, options.audited, workers=1),
    }
    found = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}
    write_text(options.output / "results.json", json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
