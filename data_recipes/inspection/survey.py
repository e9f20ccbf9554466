"""Survey: what is in a data set: labels, lengths, images, and rows that are broken or suspicious."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from data_recipes.core.held_out import HeldOutImages
from data_recipes.core.rows import Label, Rows
from data_recipes.inspection.image_scan import ImageScan, duplicates, near_duplicates, scan_images
from data_recipes.inspection.leaks import Leak, find_leaks
from safety_modules.sample import DataError, ImageSource, Sample

PLACEHOLDER = re.compile(r"<(image|video|audio|safety_\d+)>|</?s>|\bUSER:|\bASSISTANT:")
REPEATED = 0.2  # fraction of the risky rows that may have one answer
LONG_TEXT = {"tokens": 2000, "characters": 8000}


@dataclass
class Survey:
    """Numbers and findings of some rows."""

    unit: str = "characters"  # of text lengths, or "tokens"
    rows: int = 0  # that could be read
    rows_by_type: dict[str, list[int]] = field(default_factory=dict)  # places of each type's rows
    labels: Counter[Label] = field(default_factory=Counter)
    lengths: dict[str, list[float]] = field(default_factory=dict)  # of "question" and "answer": see `_quantiles`
    broken: list[tuple[str, str]] = field(default_factory=list)  # source and reason of unusable rows and images
    suspicious: list[tuple[str, str]] = field(default_factory=list)  # source, and what is odd
    scans: list[ImageScan] = field(default_factory=list)
    duplicates: list[list[ImageScan]] = field(default_factory=list)  # images that are the same file
    near_duplicates: list[tuple[ImageScan, ImageScan, int]] = field(default_factory=list)  # and bits that differ
    leaks: list[Leak] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, list[float]]:
        """min, median, 95th percentile and max of the images' widths and heights, in pixels."""
        usable = [scan for scan in self.scans if not scan.fault]
        return {name: _quantiles([getattr(scan, name) for scan in usable]) for name in ("width", "height") if usable}

    @property
    def formats(self) -> Counter[str]:
        """ "JPEG RGB" -> images."""
        return Counter(f"{scan.format} {scan.mode}" for scan in self.scans if not scan.fault)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        reasons = {"broken": self.broken, "suspicious": self.suspicious}
        return {
            "rows": self.rows,
            "labels": {f"{name}:{level}": count for (name, level), count in sorted(self.labels.items())},
            "lengths": {"unit": self.unit, **self.lengths},
            "images": len(self.scans),
            "sizes": self.sizes,
            "formats": dict(self.formats),
            **{name: [dict(zip(("source", "reason"), pair)) for pair in pairs] for name, pairs in reasons.items()},
            "duplicates": [[asdict(scan) | {"fingerprint": None} for scan in group] for group in self.duplicates],
            "near_duplicates": [
                {"one": f"{one.source} {one.name}", "other": f"{other.source} {other.name}", "bits": bits}
                for one, other, bits in self.near_duplicates
            ],
            "leaks": [leak._asdict() for leak in self.leaks],
        }


def survey_rows(
    rows: Rows,
    faults: Sequence[str] = (),
    token_count: Callable[[str], int] | None = None,
    workers: int = 1,
    held: HeldOutImages | None = None,
) -> Survey:
    """Read every row, and open every image once.

    Args:
        faults: "source: reason" of rows that were left out when the data was read.
        token_count: tokens of a text; None counts characters.
        workers: processes that open images.
        held: images that none of these may be.
    """
    survey = Survey(unit="tokens" if token_count else "characters")
    faults = list(faults)
    sources: dict[ImageSource, list[str]] = {}  # rows of each image
    texts = _TextSurvey(survey, token_count or len)
    for place in range(len(rows)):
        try:
            sample = rows[place]
        except DataError as error:
            faults.append(str(error))
            continue
        survey.labels[sample.risk_type, sample.risk_level] += 1
        survey.rows_by_type.setdefault(sample.risk_type, []).append(place)
        texts.add(sample)
        for image in sample.images:
            sources.setdefault(image, []).append(sample.source)
    texts.finish()
    survey.rows = survey.labels.total()
    survey.broken = [(source, reason) for source, _, reason in (fault.partition(": ") for fault in faults)]
    survey.scans = scan_images({image: of_image[0] for image, of_image in sources.items()}, workers)
    by_name = {(of_image[0], str(image.name)): of_image for image, of_image in sources.items()}
    for scan in survey.scans:
        if scan.fault:
            survey.broken += [(source, f"{scan.name}: {scan.fault}") for source in by_name[scan.source, scan.name]]
        survey.suspicious += [(scan.source, f"{scan.name} {reason}") for reason in scan.suspicions]
    survey.duplicates, survey.near_duplicates = duplicates(survey.scans), near_duplicates(survey.scans)
    survey.leaks = find_leaks(survey.scans, held) if held else []
    return survey


class _TextSurvey:
    """Adds the lengths of texts, and what is odd about them, to a survey."""

    def __init__(self, survey: Survey, count: Callable[[str], int]) -> None:
        self.survey, self.count = survey, count
        self.lengths: dict[str, list[int]] = {"question": [], "answer": []}
        self.risky_answers: Counter[str] = Counter()
        self.exchanges: dict[tuple, tuple[str, str]] = {}  # images and turns -> first label and source

    def add(self, sample: Sample) -> None:
        """Look at the texts of a row."""
        unit, reasons = self.survey.unit, []
        for name, text in (("question", sample.question), ("answer", sample.answer)):
            length = self.count(text)
            self.lengths[name].append(length)
            if length > LONG_TEXT[unit]:
                reasons.append(f"{name} has {length:,} {unit}, more than {LONG_TEXT[unit]:,}")
            if match := PLACEHOLDER.search(text):
                reasons.append(f"{name} contains {match[0]!r}, which a model's template uses")
        if not sample.answer:
            reasons.append("has no answer: for evaluation, or to train a head alone")
        elif sample.risk_level:
            self.risky_answers[sample.answer] += 1
        label = f"{sample.risk_type}:{sample.risk_level}"
        first, source = self.exchanges.setdefault((sample.images, sample.turns[:-1]), (label, sample.source))
        if first != label:
            reasons.append(f"is {label}, and the same exchange in {source} is {first}")
        self.survey.suspicious += [(sample.source, reason) for reason in reasons]

    def finish(self) -> None:
        """Look at the rows as a whole."""
        self.survey.lengths = {name: _quantiles(values) for name, values in self.lengths.items() if values}
        risky = self.risky_answers.total()
        for answer, count in self.risky_answers.most_common(int(1 / REPEATED)):
            if count > max(1, REPEATED * risky):
                reason = f"{count:,} of {risky:,} risky rows have the answer {answer[:60]!r}: a model would learn it"
                self.survey.suspicious.append(("all rows", f"{reason} by heart"))


def _quantiles(values: Sequence[float]) -> list[float]:
    """min, median, 95th percentile and max."""
    return np.percentile(values, (0, 50, 95, 100)).tolist()


def token_counter(path: Path | None) -> Callable[[str], int] | None:
    """A function that counts the tokens of a text by a `tokenizer.json`, the file or its folder; None without a path.

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
