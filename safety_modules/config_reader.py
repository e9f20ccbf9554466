"""Configuration files: YAML -> a dataclass, checked, with errors that say place, value, rule and remedy."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from safety_modules.config import ConfigError
from safety_modules.errors import UserError
from safety_modules.taxonomy import nearest

T = TypeVar("T")


class Loader(yaml.SafeLoader):
    """Plain values alone; 1e-2 is a number, which YAML 1.1 would read as a text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(text: str) -> object:
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader)


def read_yaml_file(path: str | Path) -> object:
    """Plain values of a YAML file.

    Raises:
        ConfigError: the file is missing, or is not YAML in UTF-8.
    """
    try:
        return read_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error


def parse(kind: type[T], values: object, place: str) -> T:
    """Plain values as a dataclass of nested dataclasses, lists and dicts; unknown keys and wrong types are errors.

    Args:
        kind: a frozen dataclass, which may check more in its `__post_init__`.
        place: where the values come from, for the message.

    Raises:
        ConfigError: the first value that breaks a rule.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{place}: must be a mapping of keys to values, not {values!r}")
    try:
        return TypeAdapter(_strict(kind)).validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"{place}: {_message(error, kind)}") from error


def _strict(kind: type) -> type:
    """The dataclass and those below it, set to refuse unknown keys."""
    for inner in (kind, *_inner(kind)):
        if "__pydantic_config__" not in vars(inner):
            with_config(ConfigDict(extra="forbid"))(inner)
    return kind


def _inner(kind: type) -> list[type]:
    """Dataclasses that stand in a dataclass's fields, at any depth."""
    inner = []
    for hint in typing.get_type_hints(kind).values():
        for part in _parts(hint):
            if dataclasses.is_dataclass(part):
                inner += [part, *_inner(part)]
    return inner


def _parts(hint: object) -> list[object]:
    """A type hint taken apart: `list[Source] | None` -> Source, None."""
    if isinstance(hint, types.UnionType) or typing.get_args(hint):
        return [part for argument in typing.get_args(hint) for part in _parts(argument)]
    return [hint]


def _message(error: ValidationError, kind: type) -> str:
    """The first fault in our words."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"])
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return str(cause)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = [field.name for part in (kind, *_inner(kind)) for field in dataclasses.fields(part)]
        return f"{name}: unknown key; {nearest(str(fault['loc'][-1]), list(dict.fromkeys(known)))}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{name}: is missing; add it"
    rule = fault["msg"].removeprefix("Input ")
    return f"{name}: {fault['input']!r} {rule}"
