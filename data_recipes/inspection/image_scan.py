"""ImageScan: what is known of each image after opening it once, and which images are duplicates."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

from data_recipes.core.held_out import NEAR_BITS, Fingerprint, ImageBytes, fingerprint, perceptual_hash
from safety_modules.prompt.images import ImageError, load_image
from safety_modules.sample import ImageSource

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
SMALL, LARGE, LONG = 48, 20e6, 10  # shorter side in pixels, area in pixels, ratio of the sides
BANDS = NEAR_BITS + 1  # hashes that differ in at most NEAR_BITS bits are equal in at least one of the bands


@dataclass(frozen=True)
class ImageScan:
    """What is known of one image; a fault in place of all else where it cannot be used."""

    source: str  # the first row that names it
    name: str  # of its file
    fault: str = ""
    format: str = ""  # "JPEG"
    mode: str = ""  # "RGB"
    width: int = 0  # in pixels
    height: int = 0
    suspicions: tuple[str, ...] = ()  # what is odd about it
    fingerprint: Fingerprint | None = None


def scan_image(image: ImageSource, source: str) -> ImageScan:
    """Open an image."""
    name = str(image.name)
    try:
        content = ImageBytes(image.read_bytes(), name)
        opened = load_image(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image that is too large is an error already
            header = Image.open(io.BytesIO(content.data))
    except (OSError, UnidentifiedImageError, ImageError) as error:
        reason = re.sub(r" <_io[^>]*>", "", " ".join(str(error).split()))  # without an object's memory address
        return ImageScan(source, name, fault=reason.removeprefix(f"{name}: "))
    hashes = replace(fingerprint(content, ""), phash=perceptual_hash(opened))
    kind, size = header.format or "", opened.size
    return ImageScan(source, name, "", kind, header.mode, *size, _suspicions(Path(name).suffix, kind, *size), hashes)


def scan_images(images: dict[ImageSource, str], workers: int) -> list[ImageScan]:
    """Open each image, with a progress bar.

    Args:
        images: with the source of each.
        workers: processes that open files; images in tables are opened in this process.
    """
    files = {image: source for image, source in images.items() if isinstance(image, Path) and workers > 1}
    bar = {"desc": "images", "leave": False}
    scans = process_map(scan_image, files, files.values(), max_workers=workers, chunksize=16, **bar) if files else []
    others = [(image, source) for image, source in images.items() if image not in files]
    return scans + [scan_image(image, source) for image, source in tqdm(others, disable=not others, **bar)]


def _suspicions(suffix: str, kind: str, width: int, height: int) -> tuple[str, ...]:
    size = f"is {width} x {height} pixels"
    kinds = (kind, kind.replace("MPO", "JPEG"))  # MPO: a JPEG followed by more images, as phones write it
    checks = {
        f"is named {suffix} and is a {kind}": FORMATS.get(suffix.lower(), kind) not in kinds,
        f"{size}, less than {SMALL} on a side": min(width, height) < SMALL,
        f"{size}, more than {LARGE / 1e6:.0f} million": width * height > LARGE,
        f"{size}, more than {LONG} to 1": max(width, height) > LONG * min(width, height),
    }
    return tuple(reason for reason, is_odd in checks.items() if is_odd)


def duplicates(scans: Iterable[ImageScan]) -> list[list[ImageScan]]:
    """Groups of images whose files are equal, under several names."""
    return [group for group in _by_file(scans) if len(group) > 1]


def near_duplicates(scans: Iterable[ImageScan]) -> list[tuple[ImageScan, ImageScan, int]]:
    """Pairs of images that look the same and are not the same file, and how many bits of their hashes differ.

    Images of one hash, such as blank ones, are paired with the first of them alone: a thousand are not half a million
    pairs.
    """
    images = [group[0] for group in _by_file(scans)]
    hashes = np.array([scan.fingerprint.phash for scan in images], np.uint64)
    values, first, codes = np.unique(hashes, return_index=True, return_inverse=True)
    pairs = {(int(first[code]), place, 0) for place, code in enumerate(codes) if first[code] != place}
    for group in _candidates(values):
        for number, place in enumerate(group[:-1]):
            others = group[number + 1 :]
            bits = np.bitwise_count(values[others] ^ values[place])
            for other, differ in zip(others[bits <= NEAR_BITS].tolist(), bits[bits <= NEAR_BITS].tolist()):
                pairs.add((*sorted((int(first[place]), int(first[other]))), differ))
    return [(images[one], images[other], bits) for one, other, bits in sorted(pairs)]


def _by_file(scans: Iterable[ImageScan]) -> list[list[ImageScan]]:
    groups: dict[str, list[ImageScan]] = {}
    for scan in scans:
        if scan.fingerprint:
            groups.setdefault(scan.fingerprint.sha256, []).append(scan)
    return list(groups.values())


def _candidates(values: np.ndarray) -> Iterator[np.ndarray]:
    """Places of hashes that are equal in one of the bands: each near pair is together in at least one group."""
    edges = np.linspace(0, 64, BANDS + 1).astype(int)
    for low, high in zip(edges, edges[1:]):
        band = (values >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band, kind="stable")
        yield from (group for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1) if len(group) > 1)
