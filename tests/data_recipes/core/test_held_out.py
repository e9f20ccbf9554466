"""Held-out images are known by their content."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_files import image
from helpers.scenes import scene
from PIL import Image

from data_recipes.core import held_out
from data_recipes.core.held_out import HEADER, NEAR, HeldOut, Mark, mark
from data_recipes.readers.hub import Streamed
from safety_modules.sample import DataError

SHA = "0123456789abcdef" * 4


def held(*paths):
    found = HeldOut()
    found.add(mark(path, "test", perceptual=True) for path in paths)
    return found


def test_a_copy_under_another_name_is_found_and_files_of_other_sizes_are_not_read(tmp_path, monkeypatch):
    one, other = scene(tmp_path / "a.png", 1), scene(tmp_path / "b.png", 2)
    found = held(one)
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(one.read_bytes())
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    assert {path: mark.name for path, mark in found.exact([copy, other]).items()} == {copy: "a.png"} and read == [copy]


def test_a_image_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    found = held(scene(tmp_path / "a.png", 1))
    with pytest.raises(DataError, match="gone.png: cannot be read"):
        found.exact([tmp_path / "gone.png"])
    assert HeldOut().exact([tmp_path / "gone.png"]) == {}


def test_a_image_in_a_table_is_found_by_its_bytes(tmp_path):
    one, other = (Streamed(scene(tmp_path / f"{seed}.png", seed).read_bytes(), f"{seed}/image/0") for seed in (1, 2))
    assert {image: mark.name for image, mark in held(tmp_path / "1.png").exact([one, other]).items()} == {one: "1.png"}


def test_the_first_of_the_same_files_names_the_mark(tmp_path):
    one = scene(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes(one.read_bytes())
    found = held(one, tmp_path / "b.png")
    assert [mark.name for mark in found.marks.values()] == ["a.png"] and found.sizes == {one.stat().st_size}


def test_the_same_image_saved_again_or_resized_is_near_and_others_are_not(tmp_path):
    paths = [scene(tmp_path / f"{seed}.png", seed) for seed in range(30)]
    found = held(*paths[:10])
    for path in paths[:10]:
        image = Image.open(path)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=60)
        changed = [
            Image.open(stream).convert("RGB"),
            image.resize((120, 90)),
            image.resize((500, 375)),
            image.resize((336, 336)),
        ]
        hashes = np.array([held_out.perceptual_hash(image) for image in changed], np.uint64)
        assert [(place, mark.name) for place, mark, _ in found.near(hashes)] == [
            (place, path.name) for place in range(4)
        ]
    others = np.array([held_out.perceptual_hash(Image.open(path)) for path in paths[10:]], np.uint64)
    assert found.near(others) == [] and NEAR == 4


def test_a_file_of_marks_comes_back_without_the_images_to_train_on(tmp_path):
    marks = [
        mark(scene(tmp_path / "a.png", 1), "test", True),
        mark(image(tmp_path / "b.png"), "train"),
        mark(image(tmp_path / "c.png", (1, 2, 3)), "harm"),
    ]
    held_out.write(tmp_path / "marks.csv", marks)
    assert held_out.read(tmp_path / "marks.csv") == [marks[0], marks[2]]


def test_a_name_with_commas_and_one_that_is_no_text_are_written(tmp_path):
    held_out.write(
        tmp_path / "marks.csv", [Mark('a, "b"\n.png', "test", 1, SHA, 2**64 - 1), Mark("\udce9.png", "test", 2, SHA)]
    )
    one, other = held_out.read(tmp_path / "marks.csv")
    assert (one.name, one.phash, other.name, other.phash) == ('a, "b"\n.png', 2**64 - 1, "\\udce9.png", None)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a,b\n", "must have the columns image, split, bytes, sha256, phash"),
        (",".join(HEADER) + f"\na,test,x,{SHA},\n", "marks.csv:2: .* is not image, split"),
        (",".join(HEADER) + f"\na,test,1,{SHA},\nb\n", "marks.csv:3: "),
        (
            ",".join(HEADER) + f"\na,test,1,{SHA},\nb,test,1,{SHA[:-1]},\n",
            "marks.csv:3: .*a hash is cut off or changed",
        ),
        (",".join(HEADER) + f"\na,test,1,{SHA.upper()},\n", "marks.csv:2: .*a hash is cut off or changed"),
        (",".join(HEADER) + f"\na,test,1,{SHA},1{'0' * 16}\n", "marks.csv:2: .*a hash is cut off or changed"),
        (",".join(HEADER) + f"\na,test,1,{SHA},-1\n", "marks.csv:2: .*a hash is cut off or changed"),
        ("", "must have the columns"),
    ],
)
def test_a_damaged_file_of_marks_names_the_line(tmp_path, text, reason):
    (tmp_path / "marks.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        held_out.read(tmp_path / "marks.csv")
    with pytest.raises(DataError, match="none.csv: cannot be read as held-out images"):
        held_out.read(tmp_path / "none.csv")
