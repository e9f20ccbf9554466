"""Report: a survey on the terminal, as `report.json` and as a page with images, `gallery.html`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from data_recipes.core.rows import Rows
from data_recipes.inspection.survey import Survey
from safety_modules.files import write_text
from safety_modules.reporting.gallery import SHOWN, Counts, Findings, Section, Tile, page, thumbnail
from safety_modules.tables import terminal_table
from safety_modules.taxonomy import CLEAN

PRINTED = 5  # findings of each kind on the terminal


def report(
    title: str, facts: list[tuple[str, str]], rows: Rows, survey: Survey, output: Path, mixture: Sequence[dict] = ()
) -> int:
    """Print the numbers, write both files, and print last whether anything is broken or leaks.

    Args:
        mixture: the counts of each source.

    Returns:
        1 if anything is broken or leaks, else 0.
    """
    header, lines = counts = _label_counts(survey)
    labels = terminal_table(escape(title), header, [[escape(cell) for cell in line] for line in lines], numbers=True)
    numbers = terminal_table("", ("", "min", "median", "95 %", "max"), _numbers(survey), numbers=True)
    for table in (labels, numbers):
        if table.row_count:
            Console().print(table)
    problems = {"broken": survey.broken, "leaking": survey.leaks, "suspicious": survey.suspicious}
    for name, problem in problems.items():
        for parts in problem[:PRINTED]:
            say(f"{name}: " + " ".join(str(part) for part in parts))
    data = {**dict(facts), **survey.to_dict(), **({"mixture": mixture} if mixture else {})}
    facts = [*facts, ("Rows", f"{survey.rows:,}"), ("Images", f"{len(survey.scans):,}")]
    texts = {
        "report.json": json.dumps(data, indent=1, ensure_ascii=False) + "\n",
        "gallery.html": page(title, facts, _sections(rows, survey), _findings(survey), counts),
    }
    for name, text in texts.items():  # a file name that is not UTF-8 is written with escapes, in JSON too
        write_text(output / name, text, errors="backslashreplace")
    say(
        f"{len(survey.duplicates):,} images under several names, {len(survey.near_duplicates):,} pairs that look the "
        f"same: {output / 'gallery.html'}"
    )
    bad = bool(survey.broken or survey.leaks)
    summary = ", ".join(f"{len(problem):,} {name}" for name, problem in problems.items())
    say(f"{'not in order' if bad else 'in order'}: {summary}")
    return int(bad)


def say(text: str) -> None:
    """Print a line as it is; a file name that is not UTF-8 with its bytes escaped."""
    line = text.encode("utf-8", "backslashreplace").decode()
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _label_counts(survey: Survey) -> Counts:
    """Rows by type and level, with sums."""
    levels = sorted({level for _, level in survey.labels})
    table = np.array([[survey.labels[name, level] for level in levels] for name in survey.rows_by_type], int)
    lines = [
        [name, *(f"{count:,}" if count else "" for count in counts), f"{counts.sum():,}"]
        for name, counts in zip(survey.rows_by_type, table)
    ]
    if len(lines) > 1:
        lines.append(["all", *(f"{count:,}" for count in (*table.sum(0), table.sum()))])
    return ["type", *(f"level {level}" for level in levels), "all"], lines


def _numbers(survey: Survey) -> list[list[str]]:
    """Quantiles of text lengths and image sizes, and images of each format."""
    quantiles = {f"{name}, {survey.unit}": values for name, values in survey.lengths.items()}
    quantiles |= {f"{name}, pixels": values for name, values in survey.sizes.items()}
    lines = [[name, *(f"{value:,.0f}" for value in values)] for name, values in quantiles.items()]
    return lines + [[name, f"{count:,} images"] for name, count in survey.formats.most_common()]


def _sections(rows: Rows, survey: Survey) -> list[Section]:
    """Some rows of each type, evenly spread."""
    sections = []
    for name, places in survey.rows_by_type.items():
        tiles = []
        for number in np.linspace(0, len(places) - 1, min(SHOWN, len(places))).astype(int):
            sample = rows[places[number]]
            texts = {"level": str(sample.risk_level), "asks": sample.question, "answer": sample.answer}
            missing = "the image cannot be read" if sample.images else "no image"
            lines = (*texts.items(), ("row", sample.source))
            tiles.append(Tile(thumbnail(sample.images), name != CLEAN, lines, missing))
        sections.append(Section(name, len(places), tiles))
    return sections


def _findings(survey: Survey) -> list[Findings]:
    """What is wrong with the rows, by kind."""
    similar = "looks like {} ({} of 64 bits differ)"
    leaks, pairs = [], []
    for leak in survey.leaks:
        held = f"{leak.held_out} of {leak.split}"
        leaks.append((f"{leak.source} {leak.image}", similar.format(held, leak.bits) if leak.bits else f"is {held}"))
    for one, other, bits in survey.near_duplicates:
        pairs.append((f"{one.source} {one.name}", similar.format(f"{other.source} {other.name}", bits)))
    same = [" = ".join(f"{scan.source} {scan.name}" for scan in group) for group in survey.duplicates]
    return [
        Findings("Held-out images among those to train on", leaks),
        Findings("Broken", survey.broken),
        Findings("Suspicious", survey.suspicious),
        Findings("The same image under several names", [(names, "the same file") for names in same]),
        Findings("Images that look the same", pairs),
    ]
