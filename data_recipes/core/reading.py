"""Reading: how the rows of a data set are labelled and filled, and what becomes of those that break a rule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from data_recipes.core.answer_texts import Texts
from data_recipes.core.rows import Label, Rows
from data_recipes.readers.indexed_json import JsonRows
from data_recipes.readers.tables import Row, shown
from safety_modules.prompt.images import ImageError, load_image
from safety_modules.sample import DataError, ImageSource, Sample
from safety_modules.taxonomy import Taxonomy, TaxonomyError, nearest

logger = logging.getLogger(__name__)

SHOWN = 5  # faults in one message
BAD_ROWS = ("error", "skip")
T = TypeVar("T")


class LeftOut(Exception):
    """A row that the user's own labels leave out."""


@dataclass
class Reading:
    """One data set being read.

    Attributes:
        taxonomy: categories and levels.
        labels: category of the data set -> `type`, `type:level`, or None to leave its rows out; over the recipe's own map.
        bad_rows: "error": a row that breaks a rule stops the reading. "skip": it is left out, and counted in `faults`.
        open_images: count a row whose image cannot be decoded among the bad ones; else that is found when it is used.
        language: of questions and answers that are composed.
        answers: whether each row needs one, to train a language model on; a head can do without.
        stream: read a hub data set as a stream, no more than the first so many rows; None to fetch it whole.
        every_label: refuse a category in `labels` that no row has.
        faults: of the rows that were left out because they break a rule.
        left_out: how many rows `labels` left out.
    """

    taxonomy: Taxonomy
    labels: Mapping[str, str | None] = field(default_factory=dict)
    bad_rows: str = "error"
    language: str = "en"
    answers: bool = False
    stream: int | None = None
    every_label: bool = True
    open_images: bool = False
    faults: list[str] = field(default_factory=list)
    left_out: int = 0

    def __post_init__(self) -> None:
        if self.bad_rows not in BAD_ROWS:
            raise DataError(f"bad_rows {self.bad_rows!r}; {nearest(self.bad_rows, list(BAD_ROWS))}")
        if not isinstance(self.labels, Mapping):
            raise DataError(f"labels {self.labels!r} must map categories of the data set to types")
        self.labels = {str(category): value for category, value in self.labels.items()}  # YAML reads 3 as a number
        for category, value in self.labels.items():
            if value is not None:
                self._own(category)
        self.texts = Texts.of(self.taxonomy, self.language)
        self._used: set[str] = set()
        self._seen: set[str] = set()

    def label(self, table: Mapping[str, Label], category: object) -> Label:
        """The type and level of a category, by the user's labels or else the recipe's table. Capitals and signs do not count.

        Raises:
            DataError: neither knows it.
            LeftOut: the user's labels leave it out.
        """
        name = str(category)
        self._seen.add(name)
        own = next((key for key in self.labels if _fold(key) == _fold(name)), None)
        if own is not None:
            self._used.add(own)
            return self._own(own)
        known = {_fold(name): label for name, label in table.items()}
        if _fold(name) not in known:
            raise DataError(f"unknown category {shown(category)}; {nearest(name, list(table))}; or name it in `labels`")
        return known[_fold(name)]

    def knows(self, table: Mapping[str, Label], category: object) -> bool:
        """Whether `label` would have a label for a category."""
        return _fold(category) in {_fold(name) for name in (*self.labels, *table)}

    def _own(self, category: str) -> Label:
        value = self.labels[category]
        if value is None:
            raise LeftOut
        name, _, level = str(value).partition(":")
        if level and not level.isdecimal():
            raise DataError(f"labels: {category!r} -> {value!r} must be a type, or type:level such as privacy:2")
        try:
            label = name, int(level) if level else self.taxonomy.default_level(name)
            self.taxonomy.check(*label)
        except TaxonomyError as error:
            raise DataError(f"labels: {category!r} -> {value!r}: {error}") from error
        return label

    def each(self, rows: Iterable[Row], convert: Callable[[Row], Sequence[T]], where: object) -> list[T]:
        """What `convert` makes of each row, one after another: samples, or tuples that begin with one.

        Args:
            where: file or folder, for messages.

        Raises:
            DataError: rows break a rule, the first five of them; with "skip", only if every row does.
        """
        found, faults, number = [], [], 0
        for row in rows:
            number += 1
            try:
                if row.fault:
                    raise DataError(row.fault)
                made = convert(row)
                for sample in made:
                    self._check(sample[0] if isinstance(sample, tuple) else sample)
                found += made
            except LeftOut:
                self.left_out += 1
            except (DataError, TaxonomyError) as error:
                faults.append(f"{row.source}: {str(error).removeprefix(f'{row.source}: ')}")
        self._report(faults, number, where)
        return found

    def _check(self, sample: Sample) -> None:
        self.taxonomy.check(sample.risk_type, sample.risk_level)
        if self.answers and not sample.answer:
            raise DataError(
                "has no answer to train a language model on; write one, or train the head alone (guard: true)"
            )

    def lazily(self, rows: JsonRows, convert: Callable[[Row], Sample], label: Label) -> Rows:
        """Rows that all have one label, made when asked for; with "skip" each is made once now, to leave out the bad ones."""
        self.taxonomy.check(*label)

        def read(place: int) -> Sample:
            source = rows.source(place)
            value = rows[place]
            if not isinstance(value, dict):
                raise DataError(f"{source}: is not an object; write one object for each row")
            try:
                sample = convert(Row(source, value))
                self._check(sample)
                return sample
            except (DataError, TaxonomyError) as error:
                raise DataError(f"{source}: {str(error).removeprefix(f'{source}: ')}") from error

        made = Rows(read, [label], np.zeros(len(rows), np.int32))
        if self.bad_rows == "error":
            return made
        good, faults = [], []
        for place in range(len(rows)):
            try:
                read(place)
                good.append(place)
            except DataError as error:
                faults.append(str(error))
        self._report(faults, len(rows), rows.path)
        return made.take(np.array(good, np.int64)) if faults else made

    def readable(self, rows: Rows, where: object) -> Rows:
        """The rows all of whose images can be decoded. Each image is opened, which takes its time for a large set."""
        images = list(dict.fromkeys(image for sample in rows for image in sample.images))
        with ThreadPoolExecutor() as pool:  # decoding lets other threads run
            faults = dict(filter(None, pool.map(_fault, images)))
        if not faults:
            return rows
        good, lines = [], []
        for place, sample in enumerate(rows):
            found = [faults[image] for image in sample.images if image in faults]
            lines += [f"{sample.source}: {found[0]}"] if found else []
            good += [] if found else [place]
        self._report(lines, len(rows), where)
        return rows.take(np.array(good, np.int64))

    def check_labels(self) -> None:
        """Refuse labels of the user's that no row has."""
        for category in self.labels if self.every_label else ():
            if category not in self._used:
                raise DataError(
                    f"labels: no row has the category {category!r}; {nearest(category, sorted(self._seen))}"
                )

    def _report(self, faults: list[str], number: int, where: object) -> None:
        if not faults:
            return
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        if self.bad_rows == "error" or len(faults) == number:
            raise DataError(
                "\n".join([f"{where}: {len(faults)} of {number} rows cannot be used", *faults[:SHOWN], *more])
            )
        self.faults += faults
        logger.warning(
            "%s: %d of %d rows are left out\n%s", where, len(faults), number, "\n".join([*faults[:SHOWN], *more])
        )


def _fault(image: ImageSource) -> tuple[ImageSource, str] | None:
    """An image that cannot be decoded, and why."""
    try:
        load_image(image)
    except ImageError as error:
        return image, str(error)
    return None


def _fold(category: str) -> str:
    """A category's letters and digits, in small letters: publishers change the rest."""
    return "".join(letter for letter in category.casefold() if letter.isalnum())
