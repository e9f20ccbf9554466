"""RowReader: how the rows of a data set become labelled samples, and what happens to rows that break a rule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from data_recipes.core.answer_texts import AnswerTexts
from data_recipes.core.rows import Label, Rows
from data_recipes.readers.indexed_json import JsonRows
from data_recipes.readers.table_row import TableRow, short_repr
from safety_modules.errors import nearest
from safety_modules.prompt.images import ImageError, load_image
from safety_modules.sample import DataError, ImageSource, Sample
from safety_modules.taxonomy import Taxonomy, TaxonomyError

logger = logging.getLogger(__name__)

SHOWN = 5  # faults in one message
BAD_ROWS = ("error", "skip")
T = TypeVar("T")


class ExcludedRow(Exception):
    """A row that the user's own labels leave out."""


@dataclass
class RowReader:
    """Reads one data set; `texts` composes questions and answers."""

    taxonomy: Taxonomy
    labels: Mapping[str, str | None] = field(default_factory=dict)  # as in `Source`
    bad_rows: str = "error"  # a row that breaks a rule is an error; or "skip": it is counted in `faults`
    language: str = "en"  # of composed texts
    answers: bool = False  # whether each row needs one, to train a language model on
    stream: int | None = None  # read only this many rows, the first, of a hub data set
    every_label: bool = True  # whether a category in `labels` that no row has is an error
    open_images: bool = False  # whether a row whose image cannot be decoded is a bad row; else it is when it is used
    faults: list[str] = field(default_factory=list)  # "source: reason" of the bad rows that were skipped
    left_out: int = 0  # rows that `labels` leave out

    def __post_init__(self) -> None:
        if self.bad_rows not in BAD_ROWS:
            raise DataError(f"bad_rows {self.bad_rows!r}; {nearest(self.bad_rows, BAD_ROWS)}")
        self.labels = {str(category): value for category, value in self.labels.items()}
        self._own_labels = {_fold(name): (name, self._parse(name, value)) for name, value in self.labels.items()}
        self.texts = AnswerTexts.load(self.taxonomy, self.language)
        self._used_labels: set[str] = set()
        self._categories: set[str] = set()  # of the rows

    def label(self, table: Mapping[str, Label], category: object) -> Label:
        """The type and level of a category, by the user's labels or else the recipe's table.

        Letters' case and all characters but letters and digits are ignored.

        Raises:
            DataError: the category is in neither.
            ExcludedRow: the user's labels leave it out.
        """
        folded = _fold(category)
        self._categories.add(str(category))
        if folded in self._own_labels:
            name, label = self._own_labels[folded]
            self._used_labels.add(name)
            if label is None:
                raise ExcludedRow
            return label
        for name, label in table.items():
            if _fold(name) == folded:
                return label
        raise DataError(f"unknown category {short_repr(category)}; {nearest(category, table)}; or name it in `labels`")

    def has_label(self, table: Mapping[str, Label], category: object) -> bool:
        """Whether `label` finds a category."""
        return _fold(category) in {*self._own_labels, *map(_fold, table)}

    def _parse(self, category: str, value: object) -> Label | None:
        """A value of the user's labels."""
        if value is None:
            return None
        name, _, level = str(value).partition(":")
        if level and not level.isdecimal():
            raise DataError(f"labels: {category!r} -> {value!r} must be a type, or type:level such as privacy:2")
        try:
            label = name, int(level) if level else self.taxonomy.default_level(name)
            self.taxonomy.check(*label)
        except TaxonomyError as error:
            raise DataError(f"labels: {category!r} -> {value!r}: {error}") from error
        return label

    def check_labels_used(self) -> None:
        """Check that some row has each category of the user's labels."""
        unused = [category for category in self.labels if category not in self._used_labels]
        if unused and self.every_label:
            names = nearest(unused[0], sorted(self._categories))
            raise DataError(f"labels: no row has the category {unused[0]!r}; {names}")

    def convert_rows(
        self, rows: Iterable[TableRow], convert: Callable[[TableRow], Sequence[T]], place: object
    ) -> list[T]:
        """The samples of all rows.

        Args:
            convert: builds the samples of a row, or tuples that begin with one.
            place: file or folder, for messages.

        Raises:
            DataError: rows break a rule; names the first five. With "skip", only if every row does.
        """
        samples, faults, count = [], [], 0
        for row in rows:
            count += 1
            try:
                samples += self._convert(row, convert)
            except ExcludedRow:
                self.left_out += 1
            except DataError as error:
                faults.append(str(error))
        self._report(faults, count, place)
        return samples

    def rows_on_demand(self, rows: JsonRows, convert: Callable[[TableRow], Sample], label: Label) -> Rows:
        """Rows of one label, each built on access. With "skip" each is built once now, to leave out the bad ones."""
        self.taxonomy.check(*label)

        def read(place: int) -> Sample:
            return self._convert(rows.row(place), lambda row: [convert(row)])[0]

        samples = Rows(read, [label], np.zeros(len(rows), np.int32))
        if self.bad_rows == "error":
            return samples
        faults = {}
        for place in range(len(rows)):
            try:
                read(place)
            except DataError as error:
                faults[place] = str(error)
        return self._without(samples, faults, rows.path)

    def decodable(self, rows: Rows, place: object) -> Rows:
        """The rows all of whose images can be decoded. Opens each image, which takes its time for a large set."""
        images = list(dict.fromkeys(image for sample in rows for image in sample.images))
        with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
            reasons = {image: reason for image, reason in zip(images, pool.map(_decoding_error, images)) if reason}
        faults = {}
        for number, sample in enumerate(rows if reasons else ()):
            for image in sample.images:
                if image in reasons:
                    faults.setdefault(number, f"{sample.source}: {reasons[image]}")
        return self._without(rows, faults, place)

    def _convert(self, row: TableRow, convert: Callable[[TableRow], Sequence[T]]) -> Sequence[T]:
        """The samples of one row, checked; every error begins with the row's source."""
        try:
            if row.fault:
                raise DataError(row.fault)
            samples = convert(row)
            for item in samples:
                sample = item[0] if isinstance(item, tuple) else item
                self.taxonomy.check(sample.risk_type, sample.risk_level)
                if self.answers and not sample.answer:
                    remedy = "write one, or train the head alone (head_only: true)"
                    raise DataError(f"has no answer to train a language model on; {remedy}")
            return samples
        except (DataError, TaxonomyError) as error:
            raise DataError(f"{row.source}: {str(error).removeprefix(f'{row.source}: ')}") from error

    def _without(self, rows: Rows, faults: Mapping[int, str], place: object) -> Rows:
        """The rows without those at the places of faults, which are reported."""
        self._report(list(faults.values()), len(rows), place)
        return rows.take(np.delete(np.arange(len(rows)), list(faults))) if faults else rows

    def _report(self, faults: list[str], count: int, place: object) -> None:
        """Raise an error for bad rows, or log and count them."""
        if not faults:
            return
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        lines = "\n".join([*faults[:SHOWN], *more])
        if self.bad_rows == "error" or len(faults) == count:
            raise DataError(f"{place}: {len(faults)} of {count} rows cannot be used\n{lines}")
        self.faults += faults
        logger.warning("%s: %d of %d rows are left out\n%s", place, len(faults), count, lines)


def _decoding_error(image: ImageSource) -> str:
    """Why an image cannot be decoded, or ""."""
    try:
        load_image(image)
    except ImageError as error:
        return str(error)
    return ""


def _fold(category: object) -> str:
    """A category's letters and digits, in lower case: publishers change the rest."""
    return "".join(character for character in str(category).casefold() if character.isalnum())
