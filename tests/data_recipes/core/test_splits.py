"""Draws and splits by hashes."""

import numpy as np
import pytest
from helpers.dataset_files import images, reader
from hypothesis import given
from hypothesis import strategies as st

import data_recipes
from data_recipes.core.splits import hash_choice, hash_fraction
from safety_modules.sample import DataError


def test_hashes_are_the_same_in_every_version():
    assert hash_choice(20, 5, "pinned").tolist() == [4, 5, 10, 13, 15], "a seed would draw other rows than before"
    assert hash_fraction("pinned") == 0.24870849217024663


@given(count=st.integers(1, 300), fraction=st.floats(0, 1), seed=st.integers(0, 5))
def test_a_draw_takes_each_place_once_and_a_smaller_one_is_part_of_it(count, fraction, seed):
    chosen = int(count * fraction)
    few, many = (hash_choice(count, size, f"{seed}").tolist() for size in (chosen // 2, chosen))
    assert len(many) == chosen == len(set(many)) and many == sorted(many)
    assert set(few) <= set(many) <= set(range(count))


def test_a_draw_is_even_over_the_places():
    drawn = sum(np.bincount(hash_choice(100, 50, f"{seed}"), minlength=100) for seed in range(400))
    assert drawn.sum() == 20_000 and 150 < drawn.min() and drawn.max() < 250


def test_validation_is_carved_by_image_name_wherever_the_data_lies(tmp_path):
    def names(folder, split):
        return {
            row.images[0].name for row in data_recipes.read("image_folder", folder, split, reader(), training=False)
        }

    folder = tmp_path / "image_folder"
    for name, count in (("clean", 40), ("privacy", 30), ("politics", 6), ("insults", 4)):
        images(folder / name, *(f"{name}{number}.png" for number in range(count)))
    train, held, whole = (names(folder, split) for split in ("train", "validation", "train+validation"))
    assert not train & held and train | held == whole and 2 <= len(held) <= 20
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert names(moved, "validation") == held
    with pytest.raises(DataError, match="recipe 'image_folder' has no split 'test'"):
        names(moved, "test")
