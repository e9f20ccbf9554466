"""LLaVA-Instruct, LLaVA-1.5's mix665k, ShareGPT4V and other LLaVA JSON: conversations about images, and text alone.

The root is the JSON file itself, with the images below its folder; or a folder with one of `llava_v1_5_mix665k.json`,
`llava_instruct_150k.json`, `sharegpt4v_instruct_gpt4-vision_cap100k.json`,
`sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json`, `annotations.json`, `annotations.jsonl`. A row is `id,
image, conversations: [{"from", "value"}]`; a row without `image` is text alone, and `image` may be a list. The file
is scanned once, and each row is parsed on access.

Labels: all clean. The images have not been checked for risks; `safety-modules audit` does that.
"""

from __future__ import annotations

from pathlib import Path

from data_recipes.core.about import About
from data_recipes.core.reading import RowReader
from data_recipes.core.rows import Rows
from data_recipes.readers import conversations, files
from data_recipes.readers.indexed_json import JsonRows
from data_recipes.readers.table_row import TableRow
from safety_modules.sample import Sample
from safety_modules.taxonomy import CLEAN

ABOUT = About(
    title="LLaVA-Instruct, mix665k, ShareGPT4V",
    published="hub: liuhaotian/LLaVA-Instruct-150K, Lin-Chen/ShareGPT4V",
    licence="CC BY 4.0 (LLaVA-Instruct), CC BY-NC 4.0 (ShareGPT4V); the texts are also under the terms of OpenAI",
    splits=("train",),
    paper="2310.03744",
)
FILES = (
    "llava_v1_5_mix665k.json",
    "llava_instruct_150k.json",
    "sharegpt4v_instruct_gpt4-vision_cap100k.json",
    "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json",
    "annotations.json",
    "annotations.jsonl",
)


def samples(root: Path, split: str, reader: RowReader) -> Rows:
    """The conversations with all their turns."""
    table = root if root.is_file() else files.find(root, *FILES)

    def convert(row: TableRow) -> Sample:
        images = tuple(files.image_path(table.parent, name) for name in row.image_names("image"))
        turns = conversations.turns(row.cells.get("conversations"), len(images))
        return Sample(images, turns, CLEAN, 0, row.source)

    return reader.rows_on_demand(JsonRows(table), convert, (CLEAN, 0))
