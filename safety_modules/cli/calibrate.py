"""Calibrate a checkpoint on labelled rows: reliable probabilities, and thresholds for a false-positive budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import data_recipes
from safety_modules.cli import options as common
from safety_modules.tables import terminal_table
from safety_modules.taxonomy import CLEAN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    text = "an exported or trained folder; safety/calibration.json is written there"
    parser.add_argument("folder", type=Path, help=text)
    common.add_rows(parser)
    text = "fraction of clean exchanges that may count as risky (%(default)s)"
    parser.add_argument("--budget", type=common.fraction, default=0.01, help=text)
    text = "policy file to store with the calibration, as the folder's own (default: none)"
    parser.add_argument("--policy", type=common.file, help=text)
    parser.add_argument("--report", type=Path, help="HTML page with the reliability plots (default: none)")
    common.add_compute(parser, batch_size=64)


def run(options: argparse.Namespace) -> None:
    """Calibrate, store in the folder, print."""
    from safety_modules.checkpoints.control_files import save_calibration, save_policy
    from safety_modules.checkpoints.format import read_taxonomy
    from safety_modules.decision.calibration import ANY, CalibrationError, rows_needed
    from safety_modules.decision.policy import Policy
    from safety_modules.evaluation.calibrate import fit
    from safety_modules.reporting import report
    from safety_modules.reporting.targets import Target

    folder, budget = options.folder, options.budget
    taxonomy = read_taxonomy(folder)
    samples = data_recipes.load(options.recipe, options.root, options.split, taxonomy)
    clean = sum(sample.risk_type == CLEAN for sample in samples)
    if clean < (needed := rows_needed(budget)):
        raise CalibrationError(
            f"--budget {budget:g} needs at least {needed} clean rows, the split has {clean}; add rows, or raise it"
        )
    calibration, numbers, bins = fit(folder, samples, *common.device_and_dtype(options, folder), options.batch_size)
    if options.policy:
        Policy.from_yaml(options.policy, taxonomy, calibration)  # an error before anything is stored
    about = {"recipe": options.recipe, "split": options.split, "rows": len(samples), **numbers}
    save_calibration(calibration, folder, about)
    if options.policy:
        save_policy(options.policy, folder)
    if options.report:
        page = report.Report(
            title=f"Calibration of {folder.name}",
            facts={"Clean rows": f"{calibration.clean_rows}"},
            metrics=numbers,
            targets=[Target(n, n.replace("_", " "), "low", digits=4, unit="") for n in numbers["after"]],
            reliability=bins,
        )
        report.write(page, options.report)
    names = {ANY: "all together (budget at the top of a policy)"}
    names |= {name: f"{name} alone" for name in calibration.scores if name != ANY}
    lines = [(text, f"{calibration.threshold(name, budget):.3g}") for name, text in names.items()]
    title = f"{calibration.clean_rows} clean rows; thresholds for {budget:.2%} false positives"
    Console().print(terminal_table(title, ("category", "threshold"), lines))
    print("  ".join(f"{name} {numbers['before'][name]:.4f} -> {value:.4f}" for name, value in numbers["after"].items()))
    print(f"A policy file with `budget: {budget:g}` uses the first threshold.")
