"""Held-out images are recognised by their content."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_files import image, scene
from PIL import Image

from data_recipes.core.held_out import (
    HEADER,
    NEAR_BITS,
    Fingerprint,
    HeldOutImages,
    ImageBytes,
    fingerprint,
    perceptual_hash,
    read_fingerprints,
    write_fingerprints,
)
from safety_modules.sample import DataError

SHA = "0123456789abcdef" * 4


def hold_out(*paths):
    held = HeldOutImages()
    held.add(fingerprint(path, "test", perceptual=True) for path in paths)
    return held


def matching_names(held, images):
    return {image: match.name for image, match in held.exact_matches(images).items()}


def test_a_copy_under_another_name_is_found_and_files_of_other_sizes_are_not_read(tmp_path, monkeypatch):
    one, other = scene(tmp_path / "a.png", 1), scene(tmp_path / "b.png", 2)
    held = hold_out(one)
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(one.read_bytes())
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or real(path))
    assert matching_names(held, [copy, other]) == {copy: "a.png"} and read == [copy]


def test_an_image_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    held = hold_out(scene(tmp_path / "a.png", 1))
    with pytest.raises(DataError, match="gone.png: cannot be read"):
        held.exact_matches([tmp_path / "gone.png"])
    assert HeldOutImages().exact_matches([tmp_path / "gone.png"]) == {}


def test_an_image_in_a_table_is_found_by_its_bytes(tmp_path):
    one, other = (ImageBytes(scene(tmp_path / f"{seed}.png", seed).read_bytes(), f"{seed}/image/0") for seed in (1, 2))
    assert matching_names(hold_out(tmp_path / "1.png"), [one, other]) == {one: "1.png"}


def test_of_equal_files_the_first_is_named(tmp_path):
    one = scene(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes(one.read_bytes())
    held = hold_out(one, tmp_path / "b.png")
    assert [image.name for image in held.fingerprints.values()] == ["a.png"] and held.sizes == {one.stat().st_size}


def test_the_same_image_saved_again_or_resized_is_near_and_others_are_not(tmp_path):
    paths = [scene(tmp_path / f"{seed}.png", seed) for seed in range(30)]
    held = hold_out(*paths[:10])
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
        hashes = np.array([perceptual_hash(image) for image in changed], np.uint64)
        assert [(place, match.name) for place, match, _ in held.near_matches(hashes)] == [
            (place, path.name) for place in range(4)
        ]
    others = np.array([perceptual_hash(Image.open(path)) for path in paths[10:]], np.uint64)
    assert held.near_matches(others) == [] and NEAR_BITS == 4


def test_written_fingerprints_are_read_without_those_of_training_images(tmp_path):
    written = [
        fingerprint(scene(tmp_path / "a.png", 1), "test", True),
        fingerprint(image(tmp_path / "b.png"), "train"),
        fingerprint(image(tmp_path / "c.png", (1, 2, 3)), "harm"),
    ]
    write_fingerprints(tmp_path / "held_out.csv", written)
    assert read_fingerprints(tmp_path / "held_out.csv") == [written[0], written[2]]


def test_a_name_with_commas_and_one_that_is_not_utf_8_are_written(tmp_path):
    names = [Fingerprint('a, "b"\n.png', "test", 1, SHA, 2**64 - 1), Fingerprint("\udce9.png", "test", 2, SHA)]
    write_fingerprints(tmp_path / "held_out.csv", names)
    one, other = read_fingerprints(tmp_path / "held_out.csv")
    assert (one.name, one.phash, other.name, other.phash) == ('a, "b"\n.png', 2**64 - 1, "\\udce9.png", None)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a,b\n", "must have the columns image, split, bytes, sha256, phash"),
        (",".join(HEADER) + f"\na,test,x,{SHA},\n", "held_out.csv:2: a size or hash is cut off or changed"),
        (",".join(HEADER) + f"\na,test,1,{SHA},\nb\n", "held_out.csv:3: "),
        (
            ",".join(HEADER) + f"\na,test,1,{SHA},\nb,test,1,{SHA[:-1]},\n",
            "held_out.csv:3: a size or hash is cut off or changed",
        ),
        (",".join(HEADER) + f"\na,test,1,{SHA.upper()},\n", "held_out.csv:2: a size or hash is cut off or changed"),
        (",".join(HEADER) + f"\na,test,1,{SHA},1{'0' * 16}\n", "held_out.csv:2: a size or hash is cut off or changed"),
        (",".join(HEADER) + f"\na,test,1,{SHA},-1\n", "held_out.csv:2: a size or hash is cut off or changed"),
        ("", "must have the columns"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_line(tmp_path, text, reason):
    (tmp_path / "held_out.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_fingerprints(tmp_path / "held_out.csv")
    with pytest.raises(DataError, match="none.csv: cannot be read"):
        read_fingerprints(tmp_path / "none.csv")
