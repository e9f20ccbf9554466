"""Look: what there is to know of each image, found by opening it once."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_recipes.core.held_out import NEAR, Mark, perceptual_hash
from safety_modules.prompt.images import ImageError, load_image
from safety_modules.sample import ImageSource

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
SMALL, LARGE, LONG = 48, 20e6, 10  # shorter side in pixels, area in pixels, ratio of the sides
BANDS = NEAR + 1  # hashes that differ in at most NEAR bits are alike in one of so many parts


@dataclass(frozen=True)
class Look:
    """One image.

    Attributes:
        source: the first row that names it. name: of its file.
        fault: why it cannot be used, or "".
        format, mode: as the file says, such as "JPEG" and "RGB". width, height: in pixels.
        suspicions: what is odd about it.
        mark: what it is known by; None where it cannot be used.
    """

    source: str
    name: str
    fault: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    suspicions: tuple[str, ...] = ()
    mark: Mark | None = None


@dataclass(frozen=True)
class _Held:
    data: bytes
    name: str

    def read_bytes(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.name


def look(image: ImageSource, source: str) -> Look:
    """Open an image."""
    name = str(image.name)
    try:
        data = image.read_bytes()
        opened = load_image(_Held(data, name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # load_image has refused what is too large
            header = Image.open(io.BytesIO(data))
    except (OSError, UnidentifiedImageError, ImageError) as error:
        reason = re.sub(r" <_io[^>]*>", "", " ".join(str(error).split()))  # an address in memory says nothing
        return Look(source, name, fault=reason.removeprefix(f"{name}: "))
    mark = Mark(name, "", len(data), hashlib.sha256(data).hexdigest(), perceptual_hash(opened))
    width, height = opened.size
    found = (header.format or "", header.mode, width, height)
    return Look(source, name, "", *found, _suspicions(Path(name), *found), mark)


def look_all(images: dict[ImageSource, str], workers: int) -> Iterator[Look]:
    """Open each image; files in so many processes, those that lie in tables in this one.

    Args: images: with the source of each.
    """
    files = [(image, source) for image, source in images.items() if isinstance(image, Path)]
    if files and workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            yield from pool.map(look, *zip(*files), chunksize=16)
    else:
        yield from (look(image, source) for image, source in files)
    yield from (look(image, source) for image, source in images.items() if not isinstance(image, Path))


def _suspicions(path: Path, kind: str, mode: str, width: int, height: int) -> tuple[str, ...]:
    found = []
    expected = FORMATS.get(path.suffix.lower())
    if expected and expected != kind.replace("MPO", "JPEG"):  # MPO: a JPEG with more images behind it, as phones write
        found.append(f"is named {path.suffix} and is a {kind}")
    if min(width, height) < SMALL:
        found.append(f"is {width} x {height} pixels, less than {SMALL} on a side")
    if width * height > LARGE:
        found.append(f"is {width} x {height} pixels, more than {LARGE / 1e6:.0f} million")
    if max(width, height) > LONG * min(width, height):
        found.append(f"is {width} x {height} pixels, more than {LONG} to 1")
    return tuple(found)


def same(looks: Iterable[Look]) -> list[list[Look]]:
    """Groups of images whose files are the same, under several names."""
    groups: dict[str, list[Look]] = {}
    for seen in looks:
        if seen.mark:
            groups.setdefault(seen.mark.sha256, []).append(seen)
    return [group for group in groups.values() if len(group) > 1]


def alike(looks: Iterable[Look]) -> list[tuple[Look, Look, int]]:
    """Pairs of images that look the same and are not the same file, and how many bits of their hashes differ.

    Images of one hash, such as empty ones, are paired with the first of them alone: a thousand are not half a million pairs.
    """
    seen = list({look.mark.sha256: look for look in reversed(list(looks)) if look.mark}.values())[::-1]
    hashes = np.array([look.mark.phash for look in seen], np.uint64)
    values, first, codes = np.unique(hashes, return_index=True, return_inverse=True)
    pairs = {(int(first[code]), place, 0) for place, code in enumerate(codes) if first[code] != place}
    for group in _candidates(values):
        for place, one in enumerate(group[:-1]):
            rest = group[place + 1 :]
            bits = np.bitwise_count(values[rest] ^ values[one])
            for other, differ in zip(rest[bits <= NEAR].tolist(), bits[bits <= NEAR].tolist()):
                pairs.add((*sorted((int(first[one]), int(first[other]))), differ))
    return [(seen[one], seen[other], bits) for one, other, bits in sorted(pairs)]


def _candidates(values: np.ndarray) -> Iterator[np.ndarray]:
    """Places of hashes that agree in one of the bands: two that are alike stand together in at least one group."""
    edges = np.linspace(0, 64, BANDS + 1).astype(int)
    for low, high in zip(edges, edges[1:]):
        part = (values >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(part, kind="stable")
        yield from (group for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1) if len(group) > 1)
