"""Configuration files: YAML -> a dataclass, checked, with errors that say place, value, rule and remedy."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from safety_modules.config import ConfigError
from safety_modules.errors import UserError, nearest

T = TypeVar("T")
RULES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string; put it in quotes"}


class Loader(yaml.SafeLoader):
    """Plain values alone; 1e-2 is a number, which YAML 1.1 would read as a string."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader)


def read_yaml_file(path: str | Path, error: type[UserError] = ConfigError) -> Any:
    """Plain values of a YAML file.

    Raises:
        UserError: of class `error`; the file is missing, or is not YAML in UTF-8.
    """
    try:
        return read_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise error(f"{path}: cannot be read as YAML: {' '.join(str(cause).split())}") from cause


def parse(kind: type[T], values: object, place: str, key: str = "") -> T:
    """Plain values as a dataclass of nested dataclasses, lists and dicts.

    A value must already have its field's type: "5" and true are not numbers, "yes" is not true. A whole number may
    stand for a float, and 1e3 for a whole number.

    Args:
        kind: a dataclass, which may check more in its `__post_init__`.
        place: where the values come from, for the message: a file's name.
        key: where the values stand there: "data".

    Raises:
        ConfigError: the first value that breaks a rule: "a.yaml: data.train.0.weight: 'two' must be a number".
    """
    try:
        return _dataclass(kind, values, key)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _dataclass(kind: type[T], values: object, key: str) -> T:
    """One dataclass; an unknown key is reported before a missing one, because it may be that one misspelt."""
    at = f"{key}: " if key else ""
    if not isinstance(values, dict):
        raise ConfigError(f"{at}{values!r} must be a mapping, such as {_example(kind, values)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(f"{_below(key, name)}: unknown key; {nearest(name, fields)}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_below(key, name)}: is missing; add it")
    hints = typing.get_type_hints(kind)
    arguments = {name: _convert(hints[name], value, _below(key, name)) for name, value in values.items()}
    try:
        return kind(**arguments)
    except UserError as error:
        names_key = key and str(error).startswith((f"{key}.", f"{key}:", f"{key} "))
        raise ConfigError(f"{'' if names_key else at}{error}") from error


def _convert(hint: Any, value: Any, key: str) -> Any:
    """One value as its field's type."""
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint) or (Any, Any)
    if kind is Any or value is None and types.NoneType in arguments:
        return value
    if kind in (typing.Union, types.UnionType):
        members = [argument for argument in arguments if argument is not types.NoneType]
        return _convert(type(value) if type(value) in members else members[0], value, key)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value, key)
    return _items(kind, arguments, value, key) if kind in (list, dict) else _scalar(kind, value, key)


def _items(kind: type, arguments: tuple, value: Any, key: str) -> list | dict:
    """A list or a mapping, item by item."""
    if not isinstance(value, list if kind is list else dict):
        a_list = f"a list, such as [{_example(arguments[0], value)}]"
        raise ConfigError(f"{key}: {value!r} must be {a_list if kind is list else 'a mapping of keys to values'}")
    if isinstance(value, list):
        return [_convert(arguments[0], item, _below(key, place)) for place, item in enumerate(value)]
    names = [_convert(arguments[0], name, key) for name in value]
    return dict(zip(names, (_convert(arguments[1], item, _below(key, name)) for name, item in value.items())))


def _scalar(kind: type, value: Any, key: str) -> Any:
    """A value of exactly this type, or a number that converts to it without loss."""
    if type(value) is kind and value == value:  # not NaN
        return value
    if kind is float and type(value) is int or kind is int and type(value) is float and value.is_integer():
        return kind(value)
    raise ConfigError(f"{key}: {value!r} must be {RULES[kind]}")


def _below(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _example(kind: Any, value: object) -> str:
    """What might be meant: 'custom' for a dataclass whose first field is recipe -> {recipe: custom}."""
    plain = str(value) if isinstance(value, (str, int, float)) else "..."
    return f"{{{dataclasses.fields(kind)[0].name}: {plain}}}" if dataclasses.is_dataclass(kind) else plain
