"""YAML as people write it: 1e-2 is a number, which YAML 1.1 would read as a text."""

from __future__ import annotations

import re

import yaml


class Loader(yaml.SafeLoader):
    """Safe: plain values alone."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_yaml(text: str) -> object:
    """Plain values of a YAML text.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader)
