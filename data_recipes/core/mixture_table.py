"""Show: tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from data_recipes.core.mixture import Part, total


def show(parts: Sequence[Part]) -> None:
    """What a mixture is made of: rows of each source by type and level, and the share of each in the whole."""
    labels = total(parts)
    rows = sum(labels.values())
    table = Table(title=f"{rows:,} rows to train on")
    for name in ("type:level", *(f"{part.recipe} {part.split}" for part in parts), "all", "share"):
        table.add_column(name, justify="left" if name == "type:level" else "right")
    for label, count in labels.items():
        table.add_row(label, *(f"{part.labels.get(label, 0):,}" for part in parts), f"{count:,}", f"{count / rows:.1%}")
    for name in ("used", "read", "bad", "left_out"):
        values = [getattr(part, name) for part in parts]
        if name in ("used", "read") or any(values):
            table.add_row(
                name.replace("_", " "), *(f"{value:,}" for value in values), f"{sum(values):,}", "", style="bold"
            )
    Console().print(table)
