"""Data sets: small copies of public ones' folders, with the real names of files and fields, and drawn images."""

import csv
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

import data_recipes
from data_recipes.core.reading import RowReader
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy

TAXONOMY = Taxonomy.default()


def image(path, color=(200, 30, 30), size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def images(folder, *names):
    for number, name in enumerate(names):
        image(folder / name, (number * 37 % 256, number * 91 % 256, 80))


def scene(path, seed, size=(240, 180)):
    """A drawn image with a structure of its own."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = (int(rng.integers(0, extent - 40)) for extent in size)
        draw.ellipse((x, y, x + 40, y + 40), fill=tuple(rng.integers(0, 256, 3).tolist()))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def write_json(path, value, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(folder, name, rows, images=("image",)):
    """Rows of a hub data set; images are given as PIL images."""
    import datasets

    kinds = {column: datasets.Image() if column in images else None for column in rows[0]}
    table = datasets.Dataset.from_dict({column: [row[column] for row in rows] for column in rows[0]})
    for column, kind in kinds.items():
        if kind is not None:
            table = table.cast_column(column, kind)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(folder / name))


def drawn(number=0):
    return Image.new("RGB", (64, 64), (number * 53 % 256, 90, 120))


def reader(**options):
    return RowReader(TAXONOMY, **options)


def read(name, root, split="train", **options):
    return data_recipes.read(name, root, split, reader(**options), training=False)


def labels(rows):
    return [(row.risk_type, row.risk_level) for row in rows]


def fault(name, root, split="train", **options):
    with pytest.raises(DataError) as error:
        read(name, root, split, **options)
    return str(error.value)
