"""Survey page: the rows and findings of a survey as sections of a gallery."""

from __future__ import annotations

import numpy as np

from data_recipes.core.rows import Rows
from data_recipes.inspection.survey import Survey
from safety_modules.reporting.gallery import SHOWN, Counts, Findings, Section, Tile, thumbnail
from safety_modules.taxonomy import CLEAN


def counts(survey: Survey) -> Counts:
    """Rows by type and level, with sums."""
    levels = sorted({level for _, level in survey.labels})
    lines = []
    for name in survey.rows_by_type:
        numbers = [survey.labels[name, level] for level in levels]
        lines.append([name, *(f"{number:,}" if number else "" for number in numbers), f"{sum(numbers):,}"])
    sums = [sum(count for (_, at), count in survey.labels.items() if at == level) for level in levels]
    if len(lines) > 1:
        lines.append(["all", *(f"{number:,}" for number in sums), f"{sum(sums):,}"])
    return ["type", *(f"level {level}" for level in levels), "all"], lines


def sections(rows: Rows, survey: Survey) -> list[Section]:
    """Some rows of each type, evenly spread."""
    found = []
    for name, places in survey.rows_by_type.items():
        chosen = [places[i] for i in np.linspace(0, len(places) - 1, min(SHOWN, len(places))).astype(int)]
        tiles = []
        for place in chosen:
            sample = rows[place]
            lines = (
                ("level", str(sample.risk_level)),
                ("asks", sample.question),
                ("answer", sample.answer),
                ("row", sample.source),
            )
            missing = "the image cannot be read" if sample.images else "no image"
            tiles.append(Tile(thumbnail(sample.images), name != CLEAN, lines, missing))
        found.append(Section(name, len(places), tiles))
    return found


def findings(survey: Survey) -> list[Findings]:
    """What the survey found, by kind."""
    same = [(" = ".join(f"{look.source} {look.name}" for look in group), "the same file") for group in survey.same]
    alike = [
        (f"{a.source} {a.name}", f"looks like {b.source} {b.name} ({bits} of 64 bits differ)")
        for a, b, bits in survey.alike
    ]
    leaks = [
        (
            f"{source} {name}",
            f"{'is' if not bits else 'looks like'} {other} of {split}"
            + (f" ({bits} of 64 bits differ)" if bits else ""),
        )
        for source, name, other, split, bits in survey.leaks
    ]
    kinds = (
        ("Held-out images among those to train on", leaks),
        ("Broken", survey.broken),
        ("Suspicious", survey.suspicious),
        ("The same image under several names", same),
        ("Images that look the same", alike),
    )
    return [Findings(title, list(lines)) for title, lines in kinds]
