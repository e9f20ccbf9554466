"""Riskworld: a small synthetic world of images, questions and risks, generated from a seed.

Six risk types, each with neutral pictograms and written words that stand for it, and benign look-alikes of them. The
images and the rubric of their levels are in `scenes`, the rule of the label in `exchanges`. Nothing in it is offensive.
"""

from __future__ import annotations

import json
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.riskworld.exchanges import exchange
from safety_modules.build_stamp import read_stamp, write_stamp
from safety_modules.files import fresh_folder
from safety_modules.sample import DataError, Sample, Turn

ABOUT = About(
    title="Riskworld",
    published="made by data_recipes.riskworld.make",
    licence="Apache-2.0, as this project",
    splits=("train", "validation", "test", "ood"),
)
SIZES = {"train": 8000, "validation": 1600, "test": 1700, "ood": 1200}
BASE = Path(__file__).parent / "base"  # the tiny LLaVA that complies with every request
_STAMP = "world.json"
_VERSION = 1  # of the generator: raise it when the same seed gives other rows


def make(root: Path, seed: int = 0, sizes: dict[str, int] | None = None) -> None:
    """Write `root/<split>.jsonl` and `root/images/<split>/NNNNN.png`; nothing where the same world is there already.

    Args:
        root: folder of the world, which is written whole or not at all; a world of another seed or size is replaced.
        seed: of every random choice.
        sizes: rows per split; `SIZES` when None.

    Raises:
        DataError: a split's name is unknown, or `root` holds something that is not a world.
    """
    root, sizes = Path(root), dict(SIZES if sizes is None else sizes)
    for split in sizes:
        _check_split(split)
    stamp, existing = {"version": _VERSION, "seed": seed, "sizes": sizes}, _read_stamp(root)
    if existing == stamp:
        return
    if existing is None and root.exists() and any(root.iterdir()):
        raise DataError(
            f"{root}: is not empty and has no {_STAMP}; riskworld replaces only a world, name another folder"
        )
    with fresh_folder(root) as folder:
        for split, size in sizes.items():
            _write_split(folder, seed, split, size)
        write_stamp(folder / _STAMP, stamp)


def records(root: Path, split: str) -> list[dict]:
    """The rows of a split.

    Each has `image` (path relative to `root`, or None), `question`, `helpful` and safe `answer`, `risk_type`,
    `risk_level`, `image_type`, `image_level`, `text_type` ("clean" when safe), `kind` of question ("unsafe" and
    "request" are not about the image), `name` of what is shown, `look_alike` (a benign image that resembles a risky
    one, clean label), `clean` (clean label and a question about the image whose `helpful` answer is exact) and `ood`
    (what differs from training, or None).

    Raises:
        DataError: the split's name is unknown, or the world is missing or damaged; the message names the remedy.
    """
    _check_split(split)
    path = Path(root) / f"{split}.jsonl"
    remedy = f"generate it with data_recipes.riskworld.make({str(root)!r})"
    stamp = _read_stamp(Path(root))
    if stamp is None or split not in stamp["sizes"] or not path.is_file():
        raise DataError(f"{path}: there is no complete riskworld; {remedy}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path.name}:{number}: is not JSON ({error}); delete the folder and {remedy}") from error
    if len(rows) != (size := stamp["sizes"][split]):
        raise DataError(f"{path}: has {len(rows)} rows, {size} expected; delete the folder and {remedy}")
    return rows


def samples(root: Path, split: str, reader: RowReader | None = None) -> list[Sample]:
    """The exchanges of a split with their safe answers, labelled by the default taxonomy; a DataError as `records`."""
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


def _write_split(folder: Path, seed: int, split: str, size: int) -> None:
    """Write one split's images and rows."""
    (folder / "images" / split).mkdir(parents=True)
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for index in range(size):
            row, image = exchange(seed, split, index), None
            if row.scene:
                image = f"images/{split}/{index:05d}.png"
                row.scene.draw().save(folder / image, compress_level=1)
            file.write(json.dumps({"image": image, **row.to_dict()}) + "\n")


def _check_split(split: str) -> None:
    if split not in SIZES:
        raise DataError(f"unknown split {split!r} of riskworld; valid names: {', '.join(SIZES)}")


def _read_stamp(root: Path) -> dict | None:
    """What the folder was made from, None if it is not a complete world."""
    stamp = read_stamp(root / _STAMP)
    return stamp if stamp and stamp.keys() == {"version", "seed", "sizes"} else None
