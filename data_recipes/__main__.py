"""Look at data before training on it: `python -m data_recipes list | inspect | check | split`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import data_recipes
from data_recipes.core import held_out
from data_recipes.core.data_config import read_data_config
from data_recipes.core.mixture import mix
from data_recipes.core.mixture_table import show
from data_recipes.core.reading import BAD_ROWS, Reading
from data_recipes.core.rows import Rows
from data_recipes.inspection.leaks import measured
from data_recipes.inspection.report import report, say
from data_recipes.inspection.survey import survey, token_counter
from safety_modules.errors import user_errors_exit
from safety_modules.taxonomy import Taxonomy

WHOLES = ("all", "mini", "safe", "unsafe")  # splits that share their rows with others


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 where nothing is broken and nothing leaks, else 1. A UserError ends the process with 2.
    """
    options = _parser().parse_args(args)
    with user_errors_exit():
        return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data_recipes", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    add = {name: commands.add_parser(name, help=run.__doc__.split("\n")[0]) for name, run in COMMANDS.items()}
    for name, run in COMMANDS.items():
        add[name].set_defaults(run=run)
    for name in ("inspect", "split"):
        add[name].add_argument("name", help="of the recipe; `list` prints them")
        add[name].add_argument("--root", required=True, help="folder or file of the data, or hf://datasets/owner/name")
        add[name].add_argument("--split", action="append", help="may be repeated (default: every split of the recipe)")
    add["check"].add_argument("mixture", type=Path, help="YAML of a stage, or its `data` part alone")
    add["check"].add_argument("--root", help="folder of the data, in place of the file's `root`")
    for name in ("inspect", "check"):
        add[name].add_argument("--output", type=Path, help="folder of report.json and gallery.html (default: in runs/)")
        add[name].add_argument(
            "--tokenizer", type=Path, help="tokenizer.json or its folder: lengths in tokens, not letters"
        )
        add[name].add_argument("--workers", type=_count, default=os.cpu_count() or 1, help="processes that open images")
    add["inspect"].add_argument("--limit", type=_count, help="at most so many rows, spread evenly")
    add["inspect"].add_argument("--stream", type=_count, help="no more than the first so many rows of a hub data set")
    add["inspect"].add_argument(
        "--bad-rows", choices=BAD_ROWS, default="skip", help="stop at them, or count them (default)"
    )
    for name in ("inspect", "check", "split"):
        add[name].add_argument(
            "--taxonomy", type=Path, help="YAML of the categories (default: the mixture's, or the paper's)"
        )
    add["split"].add_argument("--output", type=Path, required=True, help="the CSV file")
    return parser


def list_recipes(options: argparse.Namespace) -> int:
    """Print every recipe with its source, licence and splits."""
    table = Table()
    for name in ("recipe", "data set", "published", "licence", "splits", "for"):
        table.add_column(name, overflow="fold", no_wrap=name == "recipe")
    for name in data_recipes.names():
        about = data_recipes.about(name)
        use = "evaluation" if about.evaluation_only else "training"
        splits = (*about.splits, *(["validation"] if about.carve else []))
        table.add_row(name, about.title, about.published, about.licence, " ".join(splits), use)
    Console().print(table)
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Look at one data set: labels, lengths, images, broken and suspicious rows, duplicates."""
    taxonomy, parts, faults = _taxonomy(options.taxonomy), [], []
    for split in _splits(options, join=True):
        reading = Reading(taxonomy, bad_rows=options.bad_rows, stream=options.stream)
        parts.append(data_recipes.read(options.name, options.root, split, reading, training=False))
        faults += reading.faults
    rows = Rows.join(parts).spread(options.limit)
    found = survey(rows, faults, token_counter(options.tokenizer), options.workers)
    about = data_recipes.about(options.name)
    use = f"evaluation only: {about.evaluation_only}" if about.evaluation_only else "training and evaluation"
    facts = [("Data set", about.title), ("Licence", about.licence), ("For", use), ("Read from", str(options.root))]
    return report(options.name, facts, rows, found, options.output or Path("runs/inspect") / options.name)


def check(options: argparse.Namespace) -> int:
    """Look at a mixture before training on it: its composition, broken rows, duplicates, and leaks from what is measured on."""
    config, seed, own_taxonomy = read_data_config(options.mixture, options.root)
    taxonomy = _taxonomy(options.taxonomy or own_taxonomy)
    train = [replace(source, bad_rows="skip") for source in config.train]  # to count them all
    shape = (config.balance, config.clean_fraction, config.max_repeats, seed)
    rows, parts = mix(train, config.root, taxonomy, *shape, answers=False, open_images=False)  # the survey opens them
    show(parts)
    others = measured(config, taxonomy, options.workers)
    faults = [f"{part.recipe} {part.split} {fault}" for part in parts for fault in part.faults]
    once = rows.unique()
    found = survey(once, [*faults, *others.faults], token_counter(options.tokenizer), options.workers, others.held)
    facts = [
        ("Mixture", str(options.mixture)),
        ("Rows to train on", f"{len(rows):,}"),
        ("Images held out", f"{len(others.held.marks):,}"),
    ]
    output = options.output or Path("runs/check") / options.mixture.stem
    return report(options.mixture.name, facts, once, found, output, [part.to_dict() for part in parts])


def split(options: argparse.Namespace) -> int:
    """Write which image is in which split, by hashes: a file that others can compare with, and hold out by."""
    taxonomy, marks = _taxonomy(options.taxonomy), []
    for name in _splits(options):
        rows = data_recipes.read(options.name, options.root, name, Reading(taxonomy), training=False)
        marks += [held_out.mark(image, name, perceptual=True) for image in held_out.images(rows)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    held_out.write(options.output, marks)
    say(f"{len(marks):,} images: {options.output}")
    return 0


COMMANDS = {"list": list_recipes, "inspect": inspect, "check": check, "split": split}


def _taxonomy(path: str | Path | None) -> Taxonomy:
    return Taxonomy.from_yaml(path) if path else Taxonomy.default()


def _splits(options: argparse.Namespace, join: bool = False) -> Sequence[str]:
    """The splits that were named, or those of the recipe without the ones that hold others.

    Args: join: ask for a split and the tenth that is carved out of it at once, else for one after the other.
    """
    if options.split:
        return options.split
    about = data_recipes.about(options.name)
    found = [name for name in about.splits if name not in WHOLES] or ["all"]
    if about.carve:
        place = found.index(about.carve)
        found[place : place + 1] = (
            [f"{about.carve}+{data_recipes.CARVED}"] if join else [about.carve, data_recipes.CARVED]
        )
    return found


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
