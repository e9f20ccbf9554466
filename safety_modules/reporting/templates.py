"""Templates of the HTML pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2

FOLDER = Path(__file__).parent


def environment(**filters: Callable) -> jinja2.Environment:
    """The environment of this folder's templates: it escapes everything, and an undefined name is an error."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= filters
    return env
