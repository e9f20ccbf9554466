"""COCO captions: photographs with five sentences each; the first one is the answer to a composed question.

Layout of the root: `annotations/captions_<split>2017.json` (`images: [{id, file_name}]`, `annotations: [{image_id,
caption}]`) and the photographs in `<split>2017/`; 2014 is read as well.

Labels: all clean. The images have not been checked for risks; `safety-modules audit` does that.
"""

from __future__ import annotations

import json
from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.readers import files
from data_recipes.readers.recipe import exchange
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="COCO captions",
    published="cocodataset.org",
    licence="annotations CC BY 4.0; each photograph has its owner's, see `licenses` in the file",
    splits=("train", "val"),
    paper="1504.00325",
)


def samples(root: Path, split: str, reader: RowReader) -> list[Sample]:
    """A sample for each photograph that has a caption."""
    table = files.find(root, *(f"annotations/captions_{split}{year}.json" for year in (2017, 2014)))
    folder = files.find(root, table.stem.removeprefix("captions_"))
    try:
        data = json.loads(table.read_bytes())
        captions: dict[object, str] = {}
        for row in data["annotations"]:
            captions.setdefault(row["image_id"], row["caption"])
        names = [(row["id"], row["file_name"]) for row in data["images"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{table}: is not a COCO captions file ({error!r}); download it again") from error

    def convert(row: TableRow) -> list[Sample]:
        image = files.image_path(folder, row.cells["name"])
        answer = row.text("caption", needed=True)
        return [exchange(row, [image], reader.texts.question(image.name), answer, (CLEAN, 0))]

    rows = (TableRow(f"{table.name}:{name}", {"name": name, "caption": captions.get(number)}) for number, name in names)
    return reader.convert_rows(rows, convert, table)
