"""What recipes share: label maps, lookups in a folder or a row, and the sample of a question and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_recipes.readers import conversations, files, hub
from data_recipes.readers.table_row import TableRow, short_repr
from safety_modules.sample import DataError, ImageSource, Sample, Turn


def label_map(table: str) -> dict[str, tuple[str, int]]:
    """Category -> (risk type, level).

    Args:
        table: lines of `type:level category | category | ...`.
    """
    labels = {}
    for line in table.strip().splitlines():
        label, names = line.split(maxsplit=1)
        risk_type, level = label.split(":")
        labels |= {name.strip(): (risk_type, int(level)) for name in names.split("|")}
    return labels


def choice(row: TableRow, column: str, options: Sequence[str]) -> str:
    """The option that a cell names, in upper or lower case; a DataError where it names none."""
    text = row.text(column, needed=True)
    for option in options:
        if option.lower() == text.lower():
            return option
    raise DataError(f"{column} {short_repr(text)} must be one of {', '.join(options)}")


def find_image(name: object, *folders: Path) -> Path:
    """The image that a row names, below the first of these folders that holds it.

    Raises:
        DataError: none holds it; the message names the last folder.
    """
    for folder in folders[:-1]:
        try:
            return files.image_path(folder, name)
        except DataError:
            continue
    return files.image_path(folders[-1], name)


def find_table(root: str | Path, *names: str) -> Path | None:
    """The first of these files that is in a folder; None where there is none, and for a data set of the hub."""
    if hub.on_hub(root):
        return None
    return next((root / name for name in names if (root / name).is_file()), None)


def exchange(
    row: TableRow, images: Sequence[Path | ImageSource], question: str, answer: str, label: tuple[str, int]
) -> Sample:
    """The sample of one question and its answer; `<image>` is removed from the question.

    Raises:
        DataError: the question has a placeholder and there is no image.
    """
    question = conversations.without_placeholders(question, len(images))
    return Sample(tuple(images), (Turn("user", question), Turn("assistant", answer)), *label, row.source)
