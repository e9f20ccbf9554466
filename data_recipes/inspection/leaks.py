"""Leaks: images to train on that a mixture is measured on, found by their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_recipes.core.data_config import DataConfig
from data_recipes.core.held_out import HeldOutImages, images_of, read_fingerprints
from data_recipes.core.rows import Rows
from data_recipes.inspection.image_scan import ImageScan, scan_images
from safety_modules.taxonomy import Taxonomy


class Leak(NamedTuple):
    """An image to train on that is held out."""

    source: str
    image: str
    held_out: str  # name of the held-out image
    split: str  # of the held-out image
    bits: int  # of 64 in the perceptual hash that differ; 0 for the same file


def held_out_images(config: DataConfig, taxonomy: Taxonomy, workers: int) -> tuple[HeldOutImages, list[str]]:
    """The images that a mixture is measured on, and "source: reason" of rows and images that cannot be used.

    They are those of the validation sources, of the training sources' test splits as far as they are on disk, and of
    the files in `held_out`.
    """
    held, faults = HeldOutImages(), []
    splits: list[tuple[str, Rows]] = []
    for source in config.validation:
        rows, reader = replace(source, bad_rows="skip").read(config.root, taxonomy, training=False, open_images=False)
        faults += [f"{source.recipe} {source.split} {fault}" for fault in reader.faults]
        splits.append((f"{source.recipe} {source.split}", rows))
    for source in config.train:
        splits += source.test_splits(config.root, taxonomy)
    for split, rows in splits:
        scans = scan_images(images_of(rows), workers)
        held.add(replace(scan.fingerprint, split=split) for scan in scans if scan.fingerprint)
        faults += [f"{split} {scan.source}: {scan.name}: {scan.fault}" for scan in scans if scan.fault]
    for name in config.held_out:
        held.add(read_fingerprints(Path(name).expanduser()))
    return held, faults


def find_leaks(scans: Sequence[ImageScan], held: HeldOutImages) -> list[Leak]:
    """Images that are held out: the same file, or one that looks the same."""
    usable = [scan for scan in scans if scan.fingerprint]
    matches = {
        place: (held.fingerprints[scan.fingerprint.sha256], 0)
        for place, scan in enumerate(usable)
        if scan.fingerprint.sha256 in held.fingerprints
    }
    for place, image, bits in held.near_matches(np.array([scan.fingerprint.phash for scan in usable], np.uint64)):
        matches.setdefault(place, (image, bits))
    return [
        Leak(usable[place].source, usable[place].name, image.name, image.split, bits)
        for place, (image, bits) in sorted(matches.items())
    ]
