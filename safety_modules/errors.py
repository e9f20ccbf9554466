"""UserError: what the caller can put right; a command ends with its one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A value, file or folder breaks a rule; the message states it, the rule and the remedy."""


@contextmanager
def user_errors_exit() -> Iterator[None]:
    """End the process with one clear message and code 2 on a UserError; let every other error show its trace."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
