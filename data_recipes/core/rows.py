"""Rows: the samples of a data set, whose labels are known before any sample is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from safety_modules.sample import Sample

Label = tuple[str, int]  # risk type and level


class Rows(Sequence[Sample]):
    """A sequence of samples, which may be built on access, as those of a file with a million rows are.

    Attributes:
        labels: each label once.
        codes: (n,), for each row the place of its label in `labels`.
    """

    def __init__(self, read: Callable[[int], Sample], labels: Sequence[Label], codes: np.ndarray) -> None:
        """Args: read: gives the sample at a place."""
        self._read, self.labels, self.codes = read, tuple(labels), codes
        self._places: np.ndarray | None = None  # of `take`

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Rows:
        """Samples that are built already."""
        if isinstance(samples, Rows):
            return samples
        codes: dict[Label, int] = {}
        of_rows = [codes.setdefault((sample.risk_type, sample.risk_level), len(codes)) for sample in samples]
        return cls(samples.__getitem__, list(codes), np.array(of_rows, dtype=np.int32))

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of several data sets, one after another."""
        labels = list(dict.fromkeys(label for part in parts for label in part.labels))
        codes = [np.array([labels.index(x) for x in part.labels], np.int32)[part.codes] for part in parts if len(part)]
        ends = np.cumsum([len(part) for part in parts])

        def read(place: int) -> Sample:
            part = int(np.searchsorted(ends, place, side="right"))
            return parts[part][place - (int(ends[part - 1]) if part else 0)]

        return cls(read, labels, np.concatenate(codes) if codes else np.zeros(0, np.int32))

    def take(self, places: np.ndarray) -> Rows:
        """The rows at these places, in this order; one may be taken several times."""
        places = np.asarray(places, dtype=np.int64)
        taken = Rows(lambda place: self._read(int(places[place])), self.labels, self.codes[places])
        taken._places = places if self._places is None else self._places[places]
        return taken

    def unique(self) -> Rows:
        """The rows without the repetitions of `take`."""
        return self if self._places is None else self.take(np.unique(self._places, return_index=True)[1])

    def spread(self, limit: int | None) -> Rows:
        """At most this many rows, spread evenly over all."""
        if limit is None or limit >= len(self):
            return self
        return self.take(np.arange(limit, dtype=np.int64) * len(self) // limit)

    def counts(self) -> dict[Label, int]:
        """How many rows each label has."""
        numbers = np.bincount(self.codes, minlength=len(self.labels)).tolist()
        return {label: number for label, number in zip(self.labels, numbers) if number}

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, place: int | slice) -> Sample | Rows:
        if isinstance(place, slice):
            return self.take(np.arange(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self._read(place % len(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
