"""Tables: rows of cells as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def terminal_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> Table:
    """A table for `rich.console.Console().print`; with `numbers`, all columns but the first are right-aligned."""
    table = Table(title=title)
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if numbers and place else "left")
    for row in rows:
        table.add_row(*row)
    return table
