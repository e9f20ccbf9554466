"""Data sets as `datasets` reads them: Parquet on disk, saved folders, and the hub itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pytest
from helpers.dataset_files import drawn, write_parquet
from helpers.hub_server import serving
from pyarrow import parquet

from data_recipes.readers import hub
from safety_modules.sample import DataError

ROOT = Path(__file__).parents[3]
READ = """
import json, sys
from data_recipes.readers import hub
from safety_modules.sample import DataError
def read(root, split, first):
    try:
        return [
            [row.source, row.cells["text"], [x.name for x in images], [len(x.read_bytes()) for x in images]]
            for row in hub.read_rows(root, split, first=first)
            for images in [row.cells.get("image", [])]
        ]
    except DataError as error:
        return str(error)
wanted = json.loads(sys.argv[1])
results = [[read(f"hf://datasets/{name}", split, first) for first in (4, None)] for name, split in wanted]
print("RESULT", json.dumps(results))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


def some(count=5):
    return [{"image": None if n == 3 else drawn(n), "text": f"t{n}"} for n in range(count)]


def test_parquet_gives_rows_whose_images_are_read_later(tmp_path):
    write_parquet(tmp_path, "data/train-00000-of-00001.parquet", some())
    rows = list(hub.read_rows(tmp_path, "train"))
    assert [row.cells["text"] for row in rows] == [f"t{n}" for n in range(5)]
    assert [len(row.cells["image"]) for row in rows] == [1, 1, 1, 0, 1]
    (image,) = rows[1].cells["image"]
    assert image.read_bytes().startswith(b"\x89PNG") and image in {image: 1} and image != rows[0].cells["image"][0]


def names(rows, column):
    return [[image.name for image in row.cells[column]] for row in rows]


@pytest.mark.parametrize("kind", [datasets.List, datasets.LargeList])
def test_lists_of_images_without_the_ones_that_are_null(tmp_path, kind):
    features = datasets.Features({"pair": kind(datasets.Image())})
    cells = [[drawn(1), None, drawn(2)], [], None, [None], [drawn(1)]]
    datasets.Dataset.from_dict({"pair": cells}, features=features).to_parquet(str(tmp_path / "train.parquet"))
    rows = list(hub.read_rows(tmp_path, "train"))
    assert names(rows, "pair") == [["1/pair/0", "1/pair/2"], [], [], [], ["5/pair/0"]]
    one, other = rows[0].cells["pair"]
    assert one.read_bytes() == rows[4].cells["pair"][0].read_bytes() != other.read_bytes()


def test_the_first_rows_of_a_local_table(tmp_path):
    write_parquet(tmp_path, "train.parquet", some())
    for first, count in ((2, 2), (9, 5)):
        assert [row.source for row in hub.read_rows(tmp_path, "train", first=first)] == [
            f"{tmp_path.name}/train:{number}" for number in range(1, count + 1)
        ]


def test_a_row_whose_cell_holds_no_image_is_refused_by_images(tmp_path):
    write_parquet(tmp_path, "train.parquet", some())
    with_one, without = (
        next(row for row in hub.read_rows(tmp_path, "train") if row.cells["text"] == text) for text in ("t1", "t3")
    )
    assert hub.images(with_one.cells, "image") == tuple(with_one.cells["image"])
    for cells, column in ((without.cells, "image"), (with_one.cells, "text"), (with_one.cells, "none")):
        with pytest.raises(DataError, match=f"^{column} .* holds no image"):
            hub.images(cells, column)


def test_rows_of_a_table_that_was_selected_and_saved_keep_their_images(tmp_path):
    write_parquet(tmp_path, "train.parquet", some())
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train")
    table.select([4, 3, 1]).save_to_disk(tmp_path / "saved")
    whole = [row.cells["image"] for row in hub.read_rows(tmp_path, "train")]
    saved = [row.cells["image"] for row in hub.read_rows(tmp_path / "saved", "train")]
    assert [[p.read_bytes() for p in cell] for cell in saved] == [[p.read_bytes() for p in whole[n]] for n in (4, 3, 1)]


@pytest.mark.parametrize("folder", ["set [1]", "a*b", "q?"])
def test_a_folder_may_have_the_signs_of_a_pattern_in_its_name(tmp_path, folder):
    write_parquet(tmp_path / folder, "data/train-00000-of-00001.parquet", [{"image": drawn(1), "text": "a"}])
    assert [row.cells["text"] for row in hub.read_rows(tmp_path / folder, "train")] == ["a"]


def test_files_and_patterns_of_a_split_may_be_named(tmp_path):
    for name in ("x-0", "x-1", "y"):
        write_parquet(tmp_path, f"own/{name}.parquet", [{"image": drawn(1), "text": name}])
    assert [row.cells["text"] for row in hub.read_rows(tmp_path, "train", files=["own/x-*.parquet"])] == ["x-0", "x-1"]
    with pytest.raises(DataError, match=r"has none of z.parquet; give the folder"):
        list(hub.read_rows(tmp_path, "train", files=["z.parquet"]))


def test_saved_folders_with_and_without_splits(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a", "b"]})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "two")
    assert [row.cells["text"] for row in hub.read_rows(tmp_path / "one", "train")] == ["a", "b"]
    assert [row.cells["text"] for row in hub.read_rows(tmp_path / "two", "test")] == ["b"]
    with pytest.raises(DataError, match="two: has no split 'val'; it has train, test"):
        list(hub.read_rows(tmp_path / "two", "val"))


def test_what_is_missing_or_damaged_is_an_error(tmp_path):
    with pytest.raises(DataError, match="has none of train-"):
        list(hub.read_rows(tmp_path, "train"))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="split 'train': cannot be read"):
        list(hub.read_rows(tmp_path, "train"))
    with pytest.raises(DataError, match="none: has none of train-"):
        list(hub.read_rows(tmp_path / "none", "train"))


def test_files_of_one_split_whose_columns_differ_say_why(tmp_path):
    for number, value in enumerate((1, "a")):
        table = datasets.Dataset.from_dict({"n": [value]})
        (tmp_path / "data").mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / f"data/train-{number}.parquet"))
    with pytest.raises(DataError, match="split 'train': cannot be read .*'a'"):
        list(hub.read_rows(tmp_path, "train"))


def test_a_path_that_leads_out_of_the_data_set_is_not_read(tmp_path, monkeypatch):
    folder, cache = tmp_path / "set", tmp_path / "home/hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    inside = [folder / "own.png", folder / "sub/own.png", cache / "x/own.png", tmp_path / "hf-cache/own.png"]
    outside = [tmp_path / "own.png", tmp_path / "set2/own.png", tmp_path / "home/token", folder / "link.png"]
    for number, path in enumerate([*inside, *outside[:3]]):
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn(number).save(path, "PNG")
    outside[3].symlink_to(outside[0])
    paths = [*map(str, [*inside, *outside]), "sub/own.png", "../own.png", "/etc/hostname", "https://example.org/a.png"]
    cells = pyarrow.array([{"bytes": None, "path": path} for path in (*paths, None)], datasets.Image().pa_type)
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    parquet.write_table(
        pyarrow.table({"image": cells}).replace_schema_metadata(schema.metadata), folder / "train.parquet"
    )
    *columns, none = (row.cells["image"] for row in hub.read_rows(folder, "train"))
    assert none == [], "neither bytes nor a path"
    for path, (image,) in zip(paths, columns, strict=True):
        if Path(path) in inside or path == "sub/own.png":
            assert image.read_bytes() == (folder / path).read_bytes()
        else:
            with pytest.raises(OSError, match="lies outside of|No such file"):
                image.read_bytes()


def read_from_hub(home, address, *wanted):
    """What another process reads of each (data set, split): its first four rows, and all."""
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}
    env = {
        name: value
        for name, value in env.items()
        if name not in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE")
    }
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(wanted)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    return json.loads(result.removeprefix("RESULT"))


def test_the_hub_whole_and_streamed(tmp_path):
    write_parquet(tmp_path, "p.parquet", some(6))
    (tmp_path / "t.csv").write_text("text\n" + "".join(f"j{n}\n" for n in range(6)))
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-50] + b"x" * 46 + b"PAR1")
    sets = {
        "owner/images": {"data/train-00000-of-00001.parquet": tmp_path / "p.parquet"},
        "owner/texts": {"train.csv": tmp_path / "t.csv"},
        "owner/bad": {"data/train-00000-of-00001.parquet": tmp_path / "bad.parquet"},
    }
    with serving(sets) as (address, asked):
        wanted = [
            ("owner/images@main", "train"),
            ("owner/texts", "train"),
            ("owner/bad", "train"),
            ("owner/none", "train"),
        ]
        results = read_from_hub(tmp_path / "home", address, *wanted, ("owner/images", "val"))
    (first, whole), (first_texts, texts), *errors = results
    assert [text for _, text, _, _ in whole] == [f"t{n}" for n in range(6)] and whole[:4] == first
    assert [source for source, *_ in first] == [f"images@main/train:{number}" for number in range(1, 5)]
    assert [names for _, _, names, _ in whole[2:4]] == [["3/image/0"], []]
    assert all(size > 50 for *_, sizes in whole for size in sizes)
    assert [text for _, text, _, _ in texts] == [f"j{n}" for n in range(6)] and texts[:4] == first_texts
    for name, split, message in zip(("bad", "none", "images"), ("train", "train", "val"), errors, strict=True):
        assert all(line.startswith(f"hf://datasets/owner/{name}, split '{split}': cannot be read") for line in message)
    assert any("/resolve/" in path for path in asked)


def test_a_saved_split_is_not_given_for_another_one(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a"]}, split="test")
    table.save_to_disk(tmp_path / "one")
    assert len(list(hub.read_rows(tmp_path / "one", "test"))) == 1
    with pytest.raises(DataError, match="is the split 'test', not 'train'"):
        list(hub.read_rows(tmp_path / "one", "train"))
