"""Report: what a survey found, on the terminal and in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_recipes.core.rows import Rows
from data_recipes.inspection import survey_page
from data_recipes.inspection.survey import Survey
from safety_modules.reporting.gallery import page as gallery_page

SHOWN = 5  # findings of each kind on the terminal


def report(
    title: str, facts: list[tuple[str, str]], rows: Rows, found: Survey, output: Path, mixture: Sequence[dict] = ()
) -> int:
    """Print the numbers, write `report.json` and `gallery.html`, and say last whether anything is broken or leaks.

    Args: mixture: what each source gave.

    Returns:
        1 where anything is broken or leaks, else 0.
    """
    for table in (_labels(title, found), _numbers(found)):
        if table.row_count:
            Console().print(table)
    problems = [("broken", found.broken), ("leaking", found.leaks), ("suspicious", found.suspicious)]
    for name, lines in problems:
        for line in lines[:SHOWN]:
            say(f"{name}: " + " ".join(str(part) for part in line))
    output.mkdir(parents=True, exist_ok=True)
    data = {**dict(facts), **found.to_dict(), **({"mixture": mixture} if mixture else {})}
    _write(output / "report.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    numbers = [("Rows", f"{found.rows:,}"), ("Images", f"{len(found.looks):,}")]
    tiles, lines = survey_page.sections(rows, found), survey_page.findings(found)
    page = gallery_page(title, [*facts, *numbers], tiles, lines, survey_page.counts(found))
    _write(output / "gallery.html", page)
    pairs = f"{len(found.same):,} images under several names, {len(found.alike):,} pairs that look the same"
    say(f"{pairs}: {output / 'gallery.html'}")
    bad = found.broken or found.leaks
    say(f"{'not in order' if bad else 'in order'}: " + ", ".join(f"{len(lines):,} {name}" for name, lines in problems))
    return 1 if bad else 0


def say(text: str) -> None:
    """Print a line as it is; a file name that is not UTF-8 with its bytes written out."""
    line = text.encode("utf-8", "backslashreplace").decode()
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # in JSON, too, this stands for the character


def _labels(title: str, found: Survey) -> Table:
    """Rows by type and level."""
    names, lines = survey_page.counts(found)
    table = Table(title=escape(title))
    for name in names:
        table.add_column(name, justify="left" if name == "type" else "right")
    for name, *cells in lines:
        table.add_row(escape(name), *cells)
    return table


def _numbers(found: Survey) -> Table:
    """Lengths, sizes, and formats with their modes."""
    table = Table()
    for name in ("", "unit", "min", "median", "95 %", "max"):
        table.add_column(name, justify="left" if name in ("", "unit") else "right")
    for unit, spreads in ((found.unit, found.lengths), ("pixels", found.sizes)):
        for name, values in spreads.items():
            table.add_row(name, unit, *(f"{value:,.0f}" for value in values))
    for name, count in found.formats.most_common():
        table.add_row(name, f"{count:,} images")
    return table
