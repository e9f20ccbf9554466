"""Riskworld: a small synthetic world of images, questions and risks, generated from a seed.

Six risk types, each with neutral pictograms and written words that stand for it, and benign look-alikes of them. The images
and their level rubric are in `scenes`, the label's rule in `exchanges`. Nothing in it is offensive.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.riskworld.exchanges import exchange
from safety_modules.sample import DataError, Sample, Turn

ABOUT = About(
    title="Riskworld",
    published="made by data_recipes.riskworld.make",
    licence="Apache-2.0, as this project",
    splits=("train", "validation", "test", "ood"),
)
SIZES = {"train": 8000, "validation": 1600, "test": 1700, "ood": 1200}
_STAMP = "world.json"
_VERSION = 1  # of the generator: raise it when the same seed gives other rows


def make(root: Path, seed: int = 0, sizes: dict[str, int] | None = None) -> None:
    """Write `root/<split>.jsonl` and `root/images/<split>/NNNNN.png`; a complete world of the same seed and sizes is kept.

    Args:
        root: folder of the world. It appears whole or not at all; a world of another seed or size there is replaced.
        seed: of every choice.
        sizes: rows per split; `SIZES` when None.

    Raises:
        DataError: a split's name is unknown, or `root` holds something that is not a world.
    """
    root, sizes = Path(root), dict(SIZES if sizes is None else sizes)
    for split in sizes:
        _known(split)
    stamp = {"version": _VERSION, "seed": seed, "sizes": sizes}
    if _read_stamp(root) == stamp:
        return
    if root.exists() and any(root.iterdir()) and _read_stamp(root) is None:
        raise DataError(
            f"{root}: is not empty and holds no {_STAMP}; riskworld replaces only a world, name another folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        folder = Path(temporary) / root.name
        for split, size in sizes.items():
            _write(folder, seed, split, size)
        (folder / _STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        os.replace(folder, root)


def records(root: Path, split: str) -> list[dict]:
    """The rows of a split.

    Each has `image` (path relative to `root`, or None), `question`, `helpful` and safe `answer`, `risk_type`, `risk_level`,
    `image_type`, `image_level`, `text_type` ("clean" when safe), `kind` of question ("unsafe" and "request" are not about the
    image), `name` of what is shown, `look_alike` (a benign image that resembles a risky one, clean label), `clean` (clean
    label and a question on the image whose `helpful` answer is exact) and `ood` (what is unlike training, or None).

    Raises:
        DataError: the split's name is unknown, or the world is missing or damaged; the message names the remedy.
    """
    _known(split)
    path = Path(root) / f"{split}.jsonl"
    remedy = f"generate it with data_recipes.riskworld.make({str(root)!r})"
    stamp = _read_stamp(Path(root))
    if stamp is None or split not in stamp["sizes"] or not path.is_file():
        raise DataError(f"{path}: no complete riskworld there; {remedy}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path.name}:{number}: is not JSON ({error}); delete the folder and {remedy}") from error
    if len(rows) != stamp["sizes"][split]:
        raise DataError(
            f"{path}: has {len(rows)} rows, {stamp['sizes'][split]} expected; delete the folder and {remedy}"
        )
    return rows


def samples(root: Path, split: str, reading: Reading | None = None) -> list[Sample]:
    """The exchanges of a split with their safe answers; the labels are of the default taxonomy.

    Raises:
        DataError: as `records`.
    """
    root = Path(root)
    return [
        Sample(
            images=(root / row["image"],) if row["image"] else (),
            turns=(Turn("user", row["question"]), Turn("assistant", row["answer"])),
            risk_type=row["risk_type"],
            risk_level=row["risk_level"],
            source=f"{split}.jsonl:{number}",
        )
        for number, row in enumerate(records(root, split), start=1)
    ]


def _write(folder: Path, seed: int, split: str, size: int) -> None:
    """One split's images and rows."""
    images = folder / "images" / split
    images.mkdir(parents=True)
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for index in range(size):
            drawn, image = exchange(seed, split, index), None
            if drawn.scene:
                image = f"images/{split}/{index:05d}.png"
                drawn.scene.draw().save(folder / image, compress_level=1)
            file.write(json.dumps({"image": image, **drawn.to_dict()}) + "\n")


def _known(split: str) -> None:
    if split not in SIZES:
        raise DataError(f"unknown split {split!r} of riskworld; valid names: {', '.join(SIZES)}")


def _read_stamp(root: Path) -> dict | None:
    """What the folder was made from, None if it is not a complete world."""
    try:
        stamp = json.loads((root / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.keys() == {"version", "seed", "sizes"} else None
