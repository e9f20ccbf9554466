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
from data_recipes.core.data_config import read_data_config
from data_recipes.core.held_out import fingerprint, images_of, write_fingerprints
from data_recipes.core.mixture import mix, print_mixture
from data_recipes.core.reading import BAD_ROWS, RowReader
from data_recipes.core.rows import Rows
from data_recipes.inspection.leaks import held_out_images
from data_recipes.inspection.report import report, say
from data_recipes.inspection.survey import survey_rows, token_counter
from safety_modules.errors import user_errors_exit
from safety_modules.taxonomy import Taxonomy

OVERLAPPING = ("all", "mini", "safe", "unsafe")  # splits that share their rows with others


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if nothing is broken and nothing leaks, else 1. A UserError ends the process with 2.
    """
    options = _parser().parse_args(args)
    with user_errors_exit():
        return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data_recipes", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, run in COMMANDS.items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        for argument, users, settings in ARGUMENTS:
            if name in users.split():
                command.add_argument(argument, **settings)
    return parser


def list_recipes(options: argparse.Namespace) -> int:
    """Print every recipe with its source, licence and splits."""
    table = Table()
    for name in ("recipe", "data set", "published", "licence", "splits", "for"):
        table.add_column(name, overflow="fold", no_wrap=name == "recipe")
    for name in data_recipes.names():
        about = data_recipes.about(name)
        use = "evaluation" if about.evaluation_only else "training"
        splits = " ".join((*about.splits, *([data_recipes.CARVED] if about.carve else [])))
        table.add_row(name, about.title, about.published, about.licence, splits, use)
    Console().print(table)
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Look at one data set: labels, lengths, images, broken and suspicious rows, duplicates."""
    taxonomy, parts, faults = _taxonomy(options.taxonomy), [], []
    for split in options.split or default_splits(options.name, join=True):
        reader = RowReader(taxonomy, bad_rows=options.bad_rows, stream=options.stream)
        parts.append(data_recipes.read(options.name, options.root, split, reader, training=False))
        faults += reader.faults
    rows = Rows.join(parts).spread(options.limit)
    survey = survey_rows(rows, faults, token_counter(options.tokenizer), options.workers)
    about = data_recipes.about(options.name)
    use = f"evaluation only: {about.evaluation_only}" if about.evaluation_only else "training and evaluation"
    facts = [("Data set", about.title), ("Licence", about.licence), ("For", use), ("Read from", str(options.root))]
    return report(options.name, facts, rows, survey, options.output or Path("runs/inspect") / options.name)


def check(options: argparse.Namespace) -> int:
    """Look at a mixture: its composition, broken rows, duplicates, and held-out images in it."""
    config, seed, own_taxonomy = read_data_config(options.mixture, options.root)
    taxonomy = _taxonomy(options.taxonomy or own_taxonomy)
    config = replace(config, train=[replace(source, bad_rows="skip") for source in config.train])  # to count them all
    rows, counts = mix(config, taxonomy, seed, answers=False, open_images=False)  # the survey opens them
    print_mixture(counts)
    held, faults = held_out_images(config, taxonomy, options.workers)
    faults = [*(f"{source.recipe} {source.split} {fault}" for source in counts for fault in source.faults), *faults]
    unique = rows.unique()
    survey = survey_rows(unique, faults, token_counter(options.tokenizer), options.workers, held)
    facts = [
        ("Mixture", str(options.mixture)),
        ("Rows to train on", f"{len(rows):,}"),
        ("Images held out", f"{len(held.fingerprints):,}"),
    ]
    output = options.output or Path("runs/check") / options.mixture.stem
    return report(options.mixture.name, facts, unique, survey, output, [source.to_dict() for source in counts])


def split(options: argparse.Namespace) -> int:
    """Write which image is in which split, by hashes: a file to compare with, and to hold the images out by."""
    taxonomy, fingerprints = _taxonomy(options.taxonomy), []
    for name in options.split or default_splits(options.name):
        rows = data_recipes.read(options.name, options.root, name, RowReader(taxonomy), training=False)
        fingerprints += [fingerprint(image, name, perceptual=True) for image in images_of(rows)]
    write_fingerprints(options.output, fingerprints)
    say(f"{len(fingerprints):,} images: {options.output}")
    return 0


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


ARGUMENTS = (  # name, commands that have it, settings
    ("name", "inspect split", {"help": "name of the recipe; `list` prints them"}),
    ("mixture", "check", {"type": Path, "help": "YAML file of a stage, or of its `data` part alone"}),
    ("--root", "inspect split", {"required": True, "help": "folder or file of the data, or hf://datasets/owner/name"}),
    ("--root", "check", {"help": "folder of the data sets (default: the file's `root`)"}),
    ("--split", "inspect split", {"action": "append", "help": "can be repeated (default: every split of the recipe)"}),
    (
        "--taxonomy",
        "inspect check split",
        {"type": Path, "help": "YAML of the categories (default: the mixture's or the paper's)"},
    ),
    ("--output", "inspect check", {"type": Path, "help": "folder of report.json and gallery.html (default: in runs/)"}),
    ("--output", "split", {"type": Path, "required": True, "help": "the CSV file to write"}),
    ("--tokenizer", "inspect check", {"type": Path, "help": "tokenizer.json or its folder, to count tokens of texts"}),
    (
        "--workers",
        "inspect check",
        {"type": _count, "default": os.cpu_count() or 1, "help": "processes that open images (%(default)s)"},
    ),
    ("--limit", "inspect", {"type": _count, "help": "most rows to look at, spread evenly over the data set"}),
    ("--stream", "inspect", {"type": _count, "help": "read only the first STREAM rows of a hub data set"}),
    (
        "--bad-rows",
        "inspect",
        {
            "choices": BAD_ROWS,
            "default": "skip",
            "help": "stop at rows that break a rule, or skip and count them (%(default)s)",
        },
    ),
)
COMMANDS = {"list": list_recipes, "inspect": inspect, "check": check, "split": split}


def _taxonomy(path: str | Path | None) -> Taxonomy:
    return Taxonomy.from_yaml(path) if path else Taxonomy.default()


def default_splits(name: str, join: bool = False) -> list[str]:
    """The splits of a recipe that together hold each row once.

    Args:
        join: name a split and the validation that is carved out of it together, "train+validation", not one by one.
    """
    about = data_recipes.about(name)
    splits = [split for split in about.splits if split not in OVERLAPPING] or ["all"]
    if about.carve:
        parts = [about.carve, data_recipes.CARVED]
        place = splits.index(about.carve)
        splits[place : place + 1] = ["+".join(parts)] if join else parts
    return splits


if __name__ == "__main__":
    sys.exit(main())
