"""Measure opening a large LLaVA JSON, loading rows against decoding alone, and auditing against the tower alone."""

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
        "--output",
        type=Path,
        default=Path("runs/benchmark-data"),
        help="folder of the generated files and of results.json (default: %(default)s)",
    )
    for name, default, text in (
        ("--rows", 1_000_000, "rows of the LLaVA JSON"),
        ("--images", 400, "JPEGs of 640 x 480 pixels"),
        ("--audited", 128, "how many of the JPEGs are audited"),
        ("--workers", 2, "worker processes of the loader"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: %(default)s)")
    options = parser.parse_args(args)
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "pillow")},
        **data_loading.measure_opening(options.output, options.rows),
        **data_loading.measure_loading(options.output, options.images, options.workers),
        **data_loading.measure_auditing(options.output, options.audited, workers=1),
    }
    results = {name: round(value, 4) if isinstance(value, float) else value for name, value in results.items()}
    write_text(options.output / "results.json", json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
