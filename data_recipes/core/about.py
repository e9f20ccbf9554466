"""About: where a data set comes from, under which terms, and what it may be used for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """Provenance of a recipe's data.

    Attributes:
        title: as its authors call it.
        published: hub name, repository or page.
        licence: as the publisher states it; "none stated" where there is none.
        splits: that can be read; empty where the data itself names them.
        paper: arXiv number, or "".
        evaluation_only: why it may not be trained on; "" where it may be.
        carve: split that "validation" is taken from, a tenth of its images, if the authors have none; or "".
    """

    title: str
    published: str
    licence: str
    splits: tuple[str, ...]
    paper: str = ""
    evaluation_only: str = ""
    carve: str = ""
