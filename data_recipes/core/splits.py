"""Splits: a split for each row of data that names none, never two for one image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from safety_modules.sample import Sample

VALIDATION = 0.1  # share of the groups of rows


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def by_image(rows: Sequence[Sequence[str]], part: float = VALIDATION, held_out: str = "validation") -> list[str]:
    """The split of each row: "train", or `held_out` for about a share `part` of them.

    Rows that share an image, directly or through other rows, form a group and get one split, chosen by the hash of the
    group's first key. Neither split is empty where there are two groups: without a group below the share, the one with
    the lowest hash is validation. A single group is train.

    Args:
        rows: the keys of each row, at least one: paths of its images, or its text where it has none.
    """
    parents: dict[str, str] = {}

    def group(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = key = parents[parents[key]]
        return key

    for keys in rows:
        for key in keys:
            one, other = sorted((group(keys[0]), group(key)))
            parents[other] = one
    groups = {group(keys[0]) for keys in rows}
    hashes = {name: share(f"split {name}") for name in groups}
    held = {name for name in groups if hashes[name] < part} or set(sorted(groups, key=hashes.__getitem__)[:1])
    if held == groups and groups:
        held.remove(max(groups, key=hashes.__getitem__))
    return [held_out if group(keys[0]) in held else "train" for keys in rows]


def carve(samples: Sequence[Sample], held: bool) -> list[Sample]:
    """The validation tenth of a split that its authors did not divide, or the rest of it.

    By the names of the images, without their folders, or the question where there is none: so the rule gives the same
    rows wherever the data lies.
    """
    names = by_image([[image.name for image in sample.images] or [f"text {sample.question}"] for sample in samples])
    return [sample for sample, name in zip(samples, names) if (name != "train") == held]
