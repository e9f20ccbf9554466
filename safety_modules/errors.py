"""UserError: what the caller can correct, and checks that raise it. A command ends with its one line and code 2."""

from __future__ import annotations

import difflib
import string
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A value, file or folder breaks a rule; the message states the value, the rule and the remedy."""


@contextmanager
def user_errors_exit() -> Iterator[None]:
    """End the process with one line and code 2 on a UserError; every other error shows its traceback."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


def nearest(name: object, names: Iterable[str]) -> str:
    """End of an error message: the nearest valid name, then all of them."""
    valid = list(names)
    close = difflib.get_close_matches(str(name), valid, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"valid names: {', '.join(valid)}"


def check_keys(
    data: object, allowed: Iterable[str], place: str, error: type[UserError] = UserError, required: Iterable[str] = ()
) -> dict:
    """The mapping, if it has no unknown key and all required ones; else an `error` that names the place.

    An unknown key is reported before a missing one, because it may be that one misspelt.
    """
    names = list(allowed)
    if not isinstance(data, dict):
        raise error(f"{place}: {data!r} must be a mapping with {', '.join(required or names)}")
    for key in data:
        if key not in names:
            raise error(f"{place}: unknown key {key!r}; {nearest(key, names)}")
    for key in required:
        if key not in data:
            raise error(f"{place}: lacks the key {key!r}; add it")
    return data


def check_slots(text: str, allowed: Iterable[str], place: str, error: type[UserError] = UserError) -> None:
    """Check that a template has no slot but the allowed ones, such as `{hint}`, and no other brace; else an `error`."""
    names = list(allowed)
    rule = f"a text may hold {', '.join(f'{{{name}}}' for name in names) or 'no slots'} alone"
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as cause:
        raise error(f"{place}: {text!r} has a brace without its partner; {rule}") from cause
    for literal, name, spec, conversion in parsed:
        if name is not None and (name not in names or spec or conversion):
            slot = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise error(f"{place}: {text!r} has '{{{slot}}}'; {rule}")
        if "{" in literal or "}" in literal:  # written as a double brace
            raise error(f"{place}: {text!r} has a double brace; {rule}")
