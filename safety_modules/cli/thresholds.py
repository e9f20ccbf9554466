"""Thresholds of the two evaluators of an ETA recipe, whichever they are, on your own labelled rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

import data_recipes
from safety_modules.errors import UserError, user_errors_exit
from safety_modules.eta.config_file import load_eta
from safety_modules.eta.eta_thresholds import EtaThresholds
from safety_modules.evaluation.fit_eta_thresholds import fit, speaking
from safety_modules.files import write_text
from safety_modules.taxonomy import Taxonomy


def main(args: list[str] | None = None) -> None:
    """Parse, score, write, print."""
    parser = argparse.ArgumentParser(prog="safety_modules.cli.thresholds", description=__doc__)
    parser.add_argument("--recipe", required=True, help="of data_recipes, e.g. custom")
    parser.add_argument("--root", type=Path, required=True, help="folder or table of the data")
    parser.add_argument("--split", default="validation", help="rows in the proportions of use (default: validation)")
    parser.add_argument("--taxonomy", type=Path, help="YAML of your categories (default: the library's)")
    parser.add_argument("--eta", type=Path, required=True, help="recipe of ETA, with a pre- and a post-evaluator")
    parser.add_argument(
        "--model", type=Path, help="model whose plain answers are scored (default: none, the rows' own answers)"
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument(
        "--budget", type=float, default=0.03, help="share of clean exchanges each may flag (default: 0.03)"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(args)
    with user_errors_exit():
        taxonomy = Taxonomy.from_yaml(options.taxonomy) if options.taxonomy else Taxonomy.default()
        samples = data_recipes.load(options.recipe, options.root, options.split, taxonomy)
        answer, assess = speaking(options.model, options.device) if options.model else (None, None)
        eta = load_eta(options.eta, assess, options.device)
        if eta.pre is None:
            raise UserError(
                f"{options.eta}: has no pre-evaluator; add one, or write the threshold of post into the recipe"
            )
        found = fit(samples, eta.pre, eta.post, options.budget, answer, options.batch_size)
        write_text(options.output, found.to_json())
    show(found, options.output)


def show(found: EtaThresholds, output: Path) -> None:
    """A table: each evaluator and both, with the shares of rows that are flagged."""
    table = Table(title=f"at most {found.budget:.2%} of clean exchanges flagged by each -> {output}")
    for name in ("evaluator", "threshold", "clean rows", "flagged", "risky rows", "flagged"):
        table.add_column(name)
    for name, side in (("pre", found.pre), ("post", found.post)):
        counts = [
            str(side.clean_rows),
            _percent(side.clean_flagged),
            str(side.risky_rows),
            _percent(side.risky_flagged),
        ]
        table.add_row(name, f"{side.threshold:.4g} ({side.unit})", *counts)
    table.add_row("both", "", "", _percent(found.clean_flagged), "", _percent(found.risky_flagged))
    Console().print(table)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    main()
