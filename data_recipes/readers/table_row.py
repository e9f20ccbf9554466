"""TableRow: one row of a data set as its file holds it, and checks of its cells."""

from __future__ import annotations

from dataclasses import dataclass

from safety_modules.sample import DataError


@dataclass(frozen=True)
class TableRow:
    """One row."""

    source: str  # "file:line", the line on which it starts in an editor; the number of the row in Parquet and JSON
    cells: dict[str, object]  # by column, as the file holds them
    fault: str = ""  # why it cannot be read

    @classmethod
    def of(cls, source: str, value: object) -> TableRow:
        """A row from a JSON value, with a fault where that is not an object."""
        fault = f"is {short_repr(value)}, not an object; write one object for each row"
        return cls(source, value) if isinstance(value, dict) else cls(source, {}, fault)

    def text(self, column: str, needed: bool = False) -> str:
        """A cell's text, stripped; "" for an empty cell, which is a DataError if the text is needed."""
        return checked_text(self.cells.get(column), column, needed)

    def first_text(self, *columns: str) -> str:
        """The text of the first column that is not empty, for data sets whose files name one thing differently.

        Raises:
            DataError: all of them are empty; lists the row's columns.
        """
        for column in columns:
            value = self.cells.get(column)
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            if not is_empty(value):
                return checked_text(value, column)
        raise DataError(f"has none of {', '.join(columns)}; it has {', '.join(self.cells) or 'nothing'}")

    def image_names(self, *columns: str, separator: str = "<split>") -> list[str]:
        """Image paths in the first column that is not empty: a list, or one string with separators; else none."""
        value = next((self.cells[column] for column in columns if not is_empty(self.cells.get(column))), [])
        names = [name.strip() for name in value.split(separator)] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise DataError(
                f"image {short_repr(value)} must be a path, paths separated by {separator}, or a list of paths, "
                "none of them empty"
            )
        return names


def is_empty(value: object) -> bool:
    """True for None, blank text, NaN and an empty list."""
    return value is None or value == [] or (isinstance(value, str) and not value.strip()) or value != value


def checked_text(value: object, name: str, needed: bool = False) -> str:
    """A string, stripped; "" for an empty value, which is a DataError if the text is needed.

    Args:
        name: of the column or key, for the message.
    """
    if is_empty(value):
        if needed:
            raise DataError(f"{name} is empty; fill it in")
        return ""
    if not isinstance(value, str):
        raise DataError(f"{name} {short_repr(value)} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} {short_repr(value)} holds half of a surrogate pair; write the text again") from error
    return value.strip()


def short_repr(value: object) -> str:
    """A value for an error message: its `repr`, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
