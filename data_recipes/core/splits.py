"""Splits and draws by hashes: the same rows on every machine, and never two splits for one image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from safety_modules.sample import Sample

VALIDATION = 0.1  # fraction of the groups of rows


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: the first 8 bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def hash_choice(count: int, chosen: int, name: str) -> np.ndarray:
    """Places drawn by a hash of each place: the same on every machine and version of numpy.

    Source: splitmix64 (Steele et al. 2014), started at a hash of the name.

    Args:
        count: places to draw from.
        chosen: how many to draw; a smaller draw of the same name is part of a larger one.
        name: of the draw.

    Returns:
        (chosen,) places in 0..count-1, sorted.
    """
    start = np.uint64(int(hash_fraction(name) * 2**53))
    with np.errstate(over="ignore"):  # its arithmetic wraps
        state = (np.arange(count, dtype=np.uint64) + start + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.sort(np.argsort(state ^ (state >> np.uint64(31)), kind="stable")[:chosen])


def split_by_image(
    rows: Sequence[Sequence[str]], fraction: float = VALIDATION, held_out: str = "validation"
) -> list[str]:
    """The split of each row: "train", or `held_out` for about a `fraction` of them.

    Rows that share an image, directly or through other rows, form a group and get one split, chosen by the hash of the
    group's first key. Neither split is empty where there are two groups: if no group's hash is below the fraction, the
    one with the lowest hash is held out. A single group is train.

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
            first, second = sorted((group(keys[0]), group(key)))
            parents[second] = first
    hashes = {name: hash_fraction(f"split {name}") for name in {group(keys[0]) for keys in rows}}
    ranked = sorted(hashes, key=hashes.__getitem__)
    held = {name for name in ranked if hashes[name] < fraction} or set(ranked[:1])
    if len(held) == len(ranked):
        held -= set(ranked[-1:])
    return [held_out if group(keys[0]) in held else "train" for keys in rows]


def carve(samples: Sequence[Sample], held: bool) -> list[Sample]:
    """The validation tenth of a split that its authors did not divide, or the rest of it.

    Split by the images' names without their folders, or by the question where there is no image: the result does not
    depend on where the data lies.
    """
    names = split_by_image(
        [[image.name for image in sample.images] or [f"text {sample.question}"] for sample in samples]
    )
    return [sample for sample, name in zip(samples, names) if (name != "train") == held]
