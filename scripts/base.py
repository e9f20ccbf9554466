"""Train riskworld's base model, a tiny LLaVA that complies with every request, on the CPU."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch

from train.experiments.riskworld_models.base import make_base


def main(args: list[str] | None = None) -> None:
    """Parse, train, print the figures."""
    parser = argparse.ArgumentParser(prog="scripts.base", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    for name, default, text in (
        ("--seed", 0, "seed of weights, rows and augmentation"),
        ("--tower-rows", 300_000, "images that the vision tower learns from"),
        ("--rows", 72_000, "conversations that the whole model learns from"),
        ("--threads", 2, "CPU threads of the training process"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: %(default)s)")
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    print(json.dumps(make_base(options.output, options.seed, options.tower_rows, options.rows), indent=1))


if __name__ == "__main__":
    main()
