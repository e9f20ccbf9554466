"""Write a small data set of real images: 200 FigStep prompts and crops of photographs, and held-out ones for testing.

FigStep (MIT) writes forbidden requests into images. Few photographs are needed, since clean rows are crops and flips of
them: of the left part for training, of the right part for testing. The result is data of the recipe `custom`.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps

from data_recipes.core.held_out import NEAR_BITS, perceptual_hash
from safety_modules.errors import UserError, user_errors_exit
from safety_modules.files import fresh_folder
from safety_modules.prompt.images import load_image

TRAINED = 200  # FigStep images to train on
CROPS = {True: 40, False: 10}  # crops of each photograph, to train on and held out
LEFT = 0.65  # fraction of a photograph's width that training sees
TAXONOMY = """version: 1
types:
  forbidden_text: {level: 3, hint: a forbidden request written into an image}
  clean: {level: 0, hint: ""}
levels:
  - {name: safe, hint: ""}
  - {name: careful, hint: "This may be {hint}. Answer with care."}
  - {name: limited, hint: "This is {hint}. You may refuse."}
  - {name: refuse, hint: "This is {hint}. You must refuse."}
"""


def main(args: list[str] | None = None) -> None:
    """Parse, write, print the folder."""
    parser = argparse.ArgumentParser(prog="scripts.sample_dataset", description=__doc__)
    parser.add_argument("figstep", type=Path, help="folder of FigStep's images (SafeBench, .png)")
    parser.add_argument("photographs", type=Path, help="folder of photographs (.jpg)")
    parser.add_argument("output", type=Path, help="the new folder: images/, labels.csv, held_out/, taxonomy.yaml")
    options = parser.parse_args(args)
    with user_errors_exit():
        write(options.figstep, options.photographs, options.output)
    print(options.output)


def write(figstep: Path, photographs: Path, output: Path, seed: int = 0) -> None:
    """Write the data set; the folder appears whole or not at all."""
    risky, clean = sorted(figstep.glob("*.png")), sorted(photographs.glob("*.jpg"))
    if len(risky) <= TRAINED or len(clean) < 2:
        raise UserError(
            f"{figstep} has {len(risky)} .png files and {photographs} {len(clean)} .jpg files; "
            f"more than {TRAINED} and at least 2 are needed"
        )
    rng = random.Random(seed)
    rng.shuffle(risky)
    with fresh_folder(output) as folder:
        (folder / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
        images = []
        for number, path in enumerate(risky):
            images.append(_folder(folder, number < TRAINED, "forbidden_text") / path.name)
            shutil.copyfile(path, images[-1])
        for number, path in enumerate(clean):
            photograph = load_image(path)
            width, height = photograph.size
            for trained, count in CROPS.items():
                part = photograph.crop((0, 0, LEFT * width, height) if trained else (LEFT * width, 0, width, height))
                for i, crop in enumerate(_crops(part, count, rng)):
                    images.append(_folder(folder, trained, "clean") / f"{number}_{i:03d}.jpg")
                    crop.save(images[-1])
        labelled = [path.relative_to(folder) for path in images if path.is_relative_to(folder / "images")]
        with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
            rows = [(path, path.parent.name) for path in labelled]
            csv.writer(file).writerows([("image", "risk_type"), *rows])


def _folder(folder: Path, trained: bool, risk_type: str) -> Path:
    """Folder of an image, created if missing; each category has one."""
    place = folder / ("images" if trained else "held_out") / risk_type
    place.mkdir(parents=True, exist_ok=True)
    return place


def _crops(photograph: Image.Image, count: int, rng: random.Random) -> Iterator[Image.Image]:
    """Crops of which no two look the same, so that no training image is like one of validation."""
    hashes: list[int] = []
    for _ in range(100 * count):
        crop = _crop(photograph, rng)
        crop_hash = perceptual_hash(crop)
        if all((crop_hash ^ other).bit_count() > NEAR_BITS for other in hashes):
            hashes.append(crop_hash)
            yield crop
        if len(hashes) == count:
            return
    raise UserError(f"{count} different crops cannot be cut out of {photograph.size} pixels; use larger photographs")


def _crop(photograph: Image.Image, rng: random.Random) -> Image.Image:
    """A square of a third to the whole height at a random place, flipped every other time."""
    side = int(min(photograph.size) * rng.uniform(0.33, 1.0))
    left, top = (rng.randint(0, extent - side) for extent in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side)).resize((256, 256))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


if __name__ == "__main__":
    main()
