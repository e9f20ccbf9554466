"""COCO captions: photographs, each with five sentences; the first one is the answer to a composed question.

Layout of the root: `annotations/captions_<split>2017.json` (`images: [{id, file_name}]`, `annotations: [{image_id, caption}]`)
and the photographs in `<split>2017/`; 2014 is read as well.

Labels: all clean; nobody has looked for risky images among them, `safety_modules.cli.audit` does.
"""

from __future__ import annotations

import json
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import Reading
from data_recipes.readers import files
from data_recipes.readers.tables import Row
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="COCO captions",
    published="cocodataset.org",
    licence="annotations CC BY 4.0; each photograph has its owner's, see `licenses` in the file",
    splits=("train", "val"),
    paper="1504.00325",
)


def samples(root: Path, split: str, reading: Reading) -> list[Sample]:
    """A sample for each photograph that has a caption."""
    table = files.find(root, *(f"annotations/captions_{split}{year}.json" for year in (2017, 2014)))
    folder = files.find(root, table.stem.removeprefix("captions_"))
    try:
        data = json.loads(table.read_bytes())
        captions: dict[object, str] = {}
        for row in data["annotations"]:
            captions.setdefault(row["image_id"], row["caption"])
        images = [(row["id"], row["file_name"]) for row in data["images"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{table}: is not a COCO captions file ({error!r}); fetch it again") from error

    def convert(row: Row) -> list[Sample]:
        image = files.image(folder, row.cells["name"])
        answer = files.text(row.cells, "caption", needed=True)
        return [
            Sample(
                (image,),
                (Turn("user", reading.texts.question(image.name)), Turn("assistant", answer)),
                CLEAN,
                0,
                row.source,
            )
        ]

    rows = (Row(f"{table.name}:{name}", {"name": name, "caption": captions.get(number)}) for number, name in images)
    return reading.each(rows, convert, table)
