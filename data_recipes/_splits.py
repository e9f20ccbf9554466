"""Splits: a split for each row of data that names none, never two for one picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

VALIDATION = 0.1  # share of the groups of rows


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def by_picture(rows: Sequence[Sequence[str]]) -> list[str]:
    """The split of each row: "train", or "validation" for about a tenth of them.

    Rows that share a picture, directly or through other rows, form a group and get one split, chosen by the hash of the
    group's first key. Neither split is empty where there are two groups: without a group below the share, the one with
    the lowest hash is validation. A single group is train.

    Args:
        rows: the keys of each row, at least one: paths of its pictures, or its text where it has none.
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
    held = {name for name in groups if hashes[name] < VALIDATION} or set(sorted(groups, key=hashes.__getitem__)[:1])
    if held == groups and groups:
        held.remove(max(groups, key=hashes.__getitem__))
    return ["validation" if group(keys[0]) in held else "train" for keys in rows]
