"""Train riskworld's base model from nothing: python -m scripts.base --output data_recipes/riskworld/base"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import torch

from train.experiments.riskworld_models.base import make_base


def main() -> None:
    """Parse, train, print the figures."""
    parser = argparse.ArgumentParser(
        description="Train riskworld's base model, a tiny LLaVA that obeys everything, on the CPU."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-rows", type=int, default=300_000, help="images that the vision tower learns from")
    parser.add_argument("--rows", type=int, default=72_000, help="dialogues that the whole model learns from")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the training process")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    figures = make_base(options.output, options.seed, options.tower_rows, options.rows)
    print(json.dumps(figures, indent=1))
    print(f"{options.output}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
