"""Write a trial data set of real images: 200 FigStep prompts against crops of photographs, and what is left out for testing.

FigStep (MIT) draws forbidden requests as text into an image. The photographs are few, so clean rows are crops and flips of
them: of the left part of each to train on, of the right part to test. The result is ordinary data of the recipe `custom`.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps

from data_recipes.core.held_out import NEAR, perceptual_hash
from safety_modules.errors import UserError, user_errors_exit
from safety_modules.files import fresh_folder
from safety_modules.prompt.images import load_image

TRAINED = 200  # FigStep images to train on
CROPS = {True: 40, False: 10}  # crops of each photograph, to train on and left out
LEFT = 0.65  # share of a photograph's width that training sees
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
            f"{figstep} has {len(risky)} .png, {photographs} {len(clean)} .jpg; more than {TRAINED} and at least 2 are needed"
        )
    rng = random.Random(seed)
    rng.shuffle(risky)
    with fresh_folder(output) as folder:
        (folder / "taxonomy.yaml").write_text(TAXONOMY, encoding="utf-8")
        rows = []
        for number, path in enumerate(risky):
            name = _place(folder, "forbidden_text", number < TRAINED) / path.name
            shutil.copyfile(path, name)
            rows.append((name, "forbidden_text", number < TRAINED))
        for number, path in enumerate(clean):
            photograph = load_image(path)
            width, height = photograph.size
            for trained, count in CROPS.items():
                part = photograph.crop((0, 0, LEFT * width, height) if trained else (LEFT * width, 0, width, height))
                for crop, image in enumerate(_crops(part, count, rng)):
                    name = _place(folder, "clean", trained) / f"{number}_{crop:03d}.jpg"
                    image.save(name)
                    rows.append((name, "clean", trained))
        with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "risk_type"))
            writer.writerows((name.relative_to(folder), kind) for name, kind, trained in rows if trained)


def _place(folder: Path, kind: str, trained: bool) -> Path:
    """Folder of an image: images that are left out lie in a folder for each category."""
    place = folder / ("images" if trained else "held_out") / kind
    place.mkdir(parents=True, exist_ok=True)
    return place


def _crops(photograph: Image.Image, count: int, rng: random.Random) -> Iterator[Image.Image]:
    """Crops no two of which look the same, so that none to train on is like one to validate on."""
    seen: list[int] = []
    for _ in range(100 * count):
        crop = _crop(photograph, rng)
        mark = perceptual_hash(crop)
        if all((mark ^ other).bit_count() > NEAR for other in seen):
            seen.append(mark)
            yield crop
        if len(seen) == count:
            return
    raise UserError(f"{photograph.size} pixels of a photograph give no {count} crops that differ; use larger ones")


def _crop(photograph: Image.Image, rng: random.Random) -> Image.Image:
    """A square crop of a third to the whole height at a random place, flipped every other time."""
    side = int(min(photograph.size) * rng.uniform(0.33, 1.0))
    left, top = (rng.randint(0, extent - side) for extent in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side)).resize((256, 256))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


if __name__ == "__main__":
    main()
