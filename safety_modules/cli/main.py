"""The command `safety-modules`: one subcommand for each use of a trained model."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import safety_modules
from safety_modules.errors import user_errors_exit

COMMANDS = ("moderate", "generate", "calibrate", "evaluate", "audit", "export", "extend", "thresholds")


class CommandParser(argparse.ArgumentParser):
    """Ends with one line on a wrong option, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"error: {message}; `{self.prog} --help` lists the options\n")


def build_parser() -> CommandParser:
    """The parser of all commands; a module of this package each, with its `add_arguments` and `run`."""
    parser = CommandParser(prog="safety-modules", description=safety_modules.__doc__)
    parser.add_argument("--version", action="version", version=safety_modules.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"safety_modules.cli.{name}")
        text = module.__doc__ or ""
        command = commands.add_parser(name, help=text.split("\n")[0], description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; a UserError ends it with one line and exit code 2."""
    options = build_parser().parse_args(args)
    logging.basicConfig(format="%(message)s")
    with user_errors_exit():
        options.run(options)
