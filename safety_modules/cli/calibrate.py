"""Calibrate a checkpoint on labelled rows that it was not trained on: probabilities to trust, and thresholds for a budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

import data_recipes
from safety_modules.checkpoints.control_files import save_calibration, save_policy
from safety_modules.checkpoints.format import read_taxonomy
from safety_modules.decision.calibration import ANY, CalibrationError, rows_needed
from safety_modules.decision.policy import Policy
from safety_modules.errors import user_errors_exit
from safety_modules.evaluation.calibrate import Fitted, fit
from safety_modules.reporting import report
from safety_modules.taxonomy import CLEAN


def main(args: list[str] | None = None) -> None:
    """Parse, calibrate, store in the folder, print."""
    parser = argparse.ArgumentParser(prog="safety_modules.cli.calibrate", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="an exported or trained folder; safety/calibration.json is written there"
    )
    parser.add_argument("--recipe", required=True, help="of data_recipes, e.g. custom")
    parser.add_argument("--root", type=Path, required=True, help="folder or table of the data")
    parser.add_argument("--split", default="validation", help="rows in the proportions of use (default: validation)")
    parser.add_argument(
        "--budget", type=float, default=0.01, help="share of clean exchanges that may fire (default: 0.01)"
    )
    parser.add_argument(
        "--policy", type=Path, help="policy file to store beside it, as the folder's own (default: none)"
    )
    parser.add_argument("--report", type=Path, help="HTML page with the reliability plots (default: none)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(args)
    with user_errors_exit():
        taxonomy = read_taxonomy(options.folder)
        samples = data_recipes.load(options.recipe, options.root, options.split, taxonomy)
        check(options.budget, sum(sample.risk_type == CLEAN for sample in samples))
        fitted = fit(options.folder, samples, options.device)
        own = Policy.from_yaml(options.policy, taxonomy, fitted.calibration) if options.policy else None
        about = {"recipe": options.recipe, "split": options.split, "rows": len(samples), **fitted.numbers}
        save_calibration(fitted.calibration, options.folder, about)
        if own:
            save_policy(options.policy, options.folder)
        if options.report:
            report.write(page(options.folder, fitted), options.report)
    show(fitted, options.budget)


def check(budget: float, clean: int) -> None:
    """Refuse too few clean rows before anything is computed."""
    if not 0 < budget < 1:
        raise CalibrationError(f"--budget {budget:g} is a share of clean exchanges and must be above 0 and below 1")
    if clean < rows_needed(budget):
        raise CalibrationError(
            f"--budget {budget:g} needs at least {rows_needed(budget)} clean rows, the split has {clean}; add rows or raise it"
        )


def page(folder: Path, fitted: Fitted) -> report.Report:
    """The reliability plots and the numbers before and after."""
    targets = [
        report.Target(name, name.replace("_", " "), "low", digits=4, unit="") for name in fitted.numbers["after"]
    ]
    return report.Report(
        title=f"Calibration of {folder.name}",
        facts={"Clean rows": f"{fitted.calibration.clean_rows}"},
        metrics=fitted.numbers,
        targets=targets,
        curves={},
        confusion=None,
        exhibits=[],
        level_names=(),
        reliability=fitted.bins,
    )


def show(fitted: Fitted, budget: float) -> None:
    """Thresholds of the budget, for all categories at once and for each by itself, and the numbers before and after."""
    found = fitted.calibration
    table = Table(title=f"{found.clean_rows} clean rows; thresholds for {budget:.2%} false positives")
    for name in ("category", "threshold"):
        table.add_column(name)
    table.add_row(
        "all together (budget at the top of a policy)", f"{found.threshold(ANY, budget):.3g}", end_section=True
    )
    for name in found.scores:
        if name != ANY:
            table.add_row(f"{name} alone", f"{found.threshold(name, budget):.3g}")
    Console().print(table)
    before, after = fitted.numbers["before"], fitted.numbers["after"]
    print("  ".join(f"{name} {before[name]:.4f} -> {after[name]:.4f}" for name in after))
    print(f"A policy file with `budget: {budget:g}` uses the first threshold.")


if __name__ == "__main__":
    main()
