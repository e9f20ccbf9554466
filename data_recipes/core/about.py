"""About: where a data set comes from, under which terms, and what it may be used for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """Provenance of a recipe's data."""

    title: str  # as its authors call it
    published: str  # hub name, repository or page
    licence: str  # as the publisher states it; "none stated" where there is none
    splits: tuple[str, ...]  # that can be read; empty where the data itself names them
    paper: str = ""  # arXiv number
    evaluation_only: str = ""  # why it may not be trained on; empty where it may be
    carve: str = ""  # split that "validation" is taken from, a tenth of its images, where the authors have none
