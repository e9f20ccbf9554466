"""Survey: what is in a data set: labels, lengths, images, and rows that are broken or suspicious."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_recipes.core.held_out import HeldOut
from data_recipes.core.rows import Rows
from data_recipes.inspection import image_scan
from data_recipes.inspection.image_scan import Look
from safety_modules.sample import DataError, ImageSource, Sample

PLACEHOLDER = re.compile(r"<(image|video|audio|safety_\d+)>|</?s>|\bUSER:|\bASSISTANT:")
REPEATED = 0.2  # share of the risky rows that may have one answer
LONG_TOKENS, LONG_LETTERS = 2000, 8000


@dataclass
class Survey:
    """Numbers and findings of some rows.

    Attributes:
        rows: how many could be read.
        labels: (type, level) -> rows.
        lengths: "question" and "answer" -> min, median, 95th percentile and max, in `unit`.
        unit: "tokens" or "letters".
        broken: (source, reason) of rows and images that cannot be used.
        suspicious: (source, what is odd).
        looks: one for each image.
        same, alike: images that are the same file, and that look the same.
        leaks: images that are held out: (source, name, what it is there, split, bits that differ; 0 for the same file).
        rows_by_type: places of each type's rows, for a gallery.
    """

    rows: int = 0
    labels: Counter = field(default_factory=Counter)
    lengths: dict[str, list[float]] = field(default_factory=dict)
    unit: str = "letters"
    broken: list[tuple[str, str]] = field(default_factory=list)
    suspicious: list[tuple[str, str]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    same: list[list[Look]] = field(default_factory=list)
    alike: list[tuple[Look, Look, int]] = field(default_factory=list)
    leaks: list[tuple[str, str, str, str, int]] = field(default_factory=list)
    rows_by_type: dict[str, list[int]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, list[float]]:
        """min, median, 95th percentile and max of the images' widths and heights."""
        good = [look for look in self.looks if not look.fault]
        return {name: _spread([getattr(look, name) for look in good]) for name in ("width", "height") if good}

    @property
    def formats(self) -> Counter:
        """ "JPEG RGB" -> images."""
        return Counter(f"{look.format} {look.mode}" for look in self.looks if not look.fault)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {
            "rows": self.rows,
            "labels": {f"{name}:{level}": count for (name, level), count in sorted(self.labels.items())},
            "lengths": {"unit": self.unit, **self.lengths},
            "images": len(self.looks),
            "sizes": self.sizes,
            "formats": dict(self.formats),
            "broken": [{"source": source, "reason": reason} for source, reason in self.broken],
            "suspicious": [{"source": source, "reason": reason} for source, reason in self.suspicious],
            "same": [[asdict(look) | {"mark": None} for look in group] for group in self.same],
            "alike": [
                {"one": f"{a.source} {a.name}", "other": f"{b.source} {b.name}", "bits": n} for a, b, n in self.alike
            ],
            "leaks": [dict(zip(("source", "image", "held_out", "split", "bits"), leak)) for leak in self.leaks],
        }


def survey(
    rows: Rows, faults: Sequence[str], count: Callable[[str], int] | None, workers: int, held: HeldOut | None = None
) -> Survey:
    """Read every row, and open every image once.

    Args:
        faults: "source: reason" of rows that the reading left out.
        count: tokens of a text; None counts letters.
        held: images that none of these may be.
    """
    found = Survey(unit="tokens" if count else "letters")
    found.broken += [_parted(fault) for fault in faults]
    images: dict[ImageSource, list[str]] = {}
    texts = _Texts(found, count or len, LONG_TOKENS if count else LONG_LETTERS)
    for place in range(len(rows)):
        try:
            sample = rows[place]
        except DataError as error:
            found.broken.append(_parted(error))
            continue
        found.rows += 1
        found.labels[sample.risk_type, sample.risk_level] += 1
        found.rows_by_type.setdefault(sample.risk_type, []).append(place)
        texts.add(sample)
        for image in sample.images:
            images.setdefault(image, []).append(sample.source)
    texts.finish()
    found.looks = looks({image: sources[0] for image, sources in images.items()}, workers)
    users = {(sources[0], str(image.name)): sources for image, sources in images.items()}
    bad = [look for look in found.looks if look.fault]
    found.broken += [(source, f"{look.name}: {look.fault}") for look in bad for source in users[look.source, look.name]]
    found.suspicious += [(look.source, f"{look.name} {reason}") for look in found.looks for reason in look.suspicions]
    found.same, found.alike = image_scan.same(found.looks), image_scan.alike(found.looks)
    if held:
        found.leaks = leaks(found.looks, held)
    return found


def looks(images: dict[ImageSource, str], workers: int) -> list[Look]:
    """Open each image, with a progress bar."""
    return list(tqdm(image_scan.look_all(images, workers), total=len(images), desc="images", leave=False))


def _parted(fault: object) -> tuple[str, str]:
    """Source and reason of "source: reason"."""
    source, _, reason = str(fault).partition(": ")
    return source, reason


def leaks(looks: Sequence[Look], held: HeldOut) -> list[tuple[str, str, str, str, int]]:
    """Images that are held out, by their files or by their looks."""
    good = [look for look in looks if look.mark]
    found = {
        place: (look.source, look.name, mark.name, mark.split, 0)
        for place, look in enumerate(good)
        if (mark := held.marks.get(look.mark.sha256))
    }
    for place, mark, bits in held.near(np.array([look.mark.phash for look in good], np.uint64)):
        found.setdefault(place, (good[place].source, good[place].name, mark.name, mark.split, bits))
    return [found[place] for place in sorted(found)]


class _Texts:
    """Lengths of texts, and what is odd about them."""

    def __init__(self, found: Survey, count: Callable[[str], int], long: int) -> None:
        self.found, self.count, self.long = found, count, long
        self.lengths: dict[str, list[int]] = {"question": [], "answer": []}
        self.answers: Counter = Counter()
        self.asked: dict[tuple, tuple[tuple[str, int], str]] = {}

    def add(self, sample: Sample) -> None:
        """Look at the texts of a row."""
        odd = self.found.suspicious
        for name, text in (("question", sample.question), ("answer", sample.answer)):
            length = self.count(text)
            self.lengths[name].append(length)
            if length > self.long:
                odd.append((sample.source, f"{name} has {length:,} {self.found.unit}, more than {self.long:,}"))
            if match := PLACEHOLDER.search(text):
                odd.append((sample.source, f"{name} contains {match[0]!r}, which a model's template uses"))
        if not sample.answer:
            odd.append((sample.source, "has no answer: for evaluation or for a head alone"))
        elif sample.risk_level:
            self.answers[sample.answer] += 1
        label = (sample.risk_type, sample.risk_level)
        before, source = self.asked.setdefault((sample.images, sample.turns[:-1]), (label, sample.source))
        if before != label:
            odd.append(
                (
                    sample.source,
                    f"is {label[0]}:{label[1]}, and the same exchange in {source} is {before[0]}:{before[1]}",
                )
            )

    def finish(self) -> None:
        """Look at the rows as a whole."""
        self.found.lengths = {name: _spread(values) for name, values in self.lengths.items() if values}
        risky = sum(self.answers.values())
        for answer, count in self.answers.most_common(int(1 / REPEATED)):
            if count > max(1, REPEATED * risky):
                reason = (
                    f"{count:,} of {risky:,} risky rows have the answer {answer[:60]!r}: a model learns it by heart"
                )
                self.found.suspicious.append(("all rows", reason))


def _spread(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.percentile(values, (0, 50, 95, 100))]


def token_counter(path: Path | None) -> Callable[[str], int] | None:
    """Counts the tokens of a text by a `tokenizer.json`, the file or its folder.

    Raises:
        DataError: there is no such file.
    """
    if path is None:
        return None
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file; give a tokenizer.json, or the folder of a model that has one")
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
