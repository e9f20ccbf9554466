"""Helpers: folders of somebody's own images and the recipe `custom` on them."""

import pytest

from data_recipes import custom
from data_recipes.core.reading import RowReader
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy

TAXONOMY = Taxonomy.default()
HEADER = "image,question,answer,risk_type,risk_level"


def touch(folder, *names):
    """Files in place of images: the recipe does not open them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(folder, *lines, name="labels.csv"):
    (folder / name).write_bytes(("\n".join(lines) + "\n").encode())
    return folder


def rows(root, split="all", taxonomy=TAXONOMY):
    return custom.samples(root, split, RowReader(taxonomy))


def fault(root, split="all", taxonomy=TAXONOMY):
    """The message of the error that reading gives."""
    with pytest.raises(DataError) as error:
        rows(root, split, taxonomy)
    return str(error.value)


def parquet(folder, columns, name="labels.parquet"):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as file

    table = pyarrow.table(columns) if isinstance(columns, dict) else pyarrow.Table.from_arrays(*columns)
    file.write_table(table, folder / name)
    return folder
