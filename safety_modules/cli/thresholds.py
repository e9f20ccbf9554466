"""Fit the thresholds of the two evaluators of an ETA config file on your own labelled rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import data_recipes
from safety_modules.cli import options as common
from safety_modules.errors import UserError
from safety_modules.files import write_text
from safety_modules.tables import terminal_table
from safety_modules.taxonomy import CLEAN, Taxonomy

if TYPE_CHECKING:
    from safety_modules.eta.evaluators.head import Assess, HasRisk
    from safety_modules.eta.evaluators.protocols import Messages
    from safety_modules.evaluation.fit_eta_thresholds import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    common.add_rows(parser)
    parser.add_argument("--taxonomy", type=common.file, help="YAML of your categories (default: the library's)")
    text = "ETA config file, with a pre- and a post-evaluator"
    parser.add_argument("--eta", type=common.file, required=True, help=text)
    text = "model whose plain answers are scored (default: none, the rows' own answers are)"
    parser.add_argument("--model", type=Path, help=text)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the thresholds")
    text = "fraction of clean exchanges that each may flag (%(default)s)"
    parser.add_argument("--budget", type=common.fraction, default=0.03, help=text)
    common.add_compute(parser, batch_size=16)


def run(options: argparse.Namespace) -> None:
    """Score, write, print."""
    from safety_modules.checkpoints.format import SAFETY
    from safety_modules.devices import resolve_device
    from safety_modules.eta.config_file import load_eta
    from safety_modules.eta.eta_thresholds import check_rows
    from safety_modules.evaluation.fit_eta_thresholds import fit, load_answerer

    taxonomy = Taxonomy.from_yaml(options.taxonomy) if options.taxonomy else Taxonomy.default()
    samples = data_recipes.load(options.recipe, options.root, options.split, taxonomy)
    check_rows(sum(sample.risk_type == CLEAN for sample in samples), options.budget)
    answer: Answer | None = None
    assess: Assess | None = None

    def assess_later(exchanges: Sequence[Messages]) -> Sequence[HasRisk]:
        if assess is None:
            raise UserError(f"{options.model}: has no safety head to assess exchanges with")
        return assess(exchanges)

    # ETA first: errors in its file are found before a large model is loaded
    has_modules = options.model is not None and (options.model / SAFETY).is_dir()
    eta = load_eta(options.eta, assess_later if has_modules else None, resolve_device(options.device))
    if eta.pre is None:
        raise UserError(f"{options.eta}: has no pre-evaluator; add one, or write the threshold of post into the file")
    if options.model:
        answer, assess = load_answerer(options.model, *common.device_and_dtype(options, options.model))
    fitted = fit(samples, eta.pre, eta.post, options.budget, answer, options.batch_size)
    write_text(options.output, fitted.to_json())
    lines = [
        (name, f"{side.threshold:.4g} ({side.unit})", str(side.clean_rows), _percent(side.clean_flagged))
        + (str(side.risky_rows), _percent(side.risky_flagged))
        for name, side in (("pre", fitted.pre), ("post", fitted.post))
    ]
    lines.append(("both", "", "", _percent(fitted.clean_flagged), "", _percent(fitted.risky_flagged)))
    title = f"at most {fitted.budget:.2%} of clean exchanges flagged by each -> {options.output}"
    header = ("evaluator", "threshold", "clean rows", "flagged", "risky rows", "flagged")
    Console().print(terminal_table(title, header, lines))


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"
