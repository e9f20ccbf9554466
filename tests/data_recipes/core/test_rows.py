"""Rows: samples whose labels are known before any is built; and the configuration that names them."""

import numpy as np
import pytest

from data_recipes.core.data_config import Source, read_data_config
from data_recipes.core.rows import Rows
from safety_modules.config import ConfigError
from safety_modules.sample import Sample, Turn
from train.config import read_config


def samples(*kinds):
    turns = (Turn("user", "Q"), Turn("assistant", "A"))
    return [Sample((), turns, kind, int(kind != "clean"), f"f:{place}") for place, kind in enumerate(kinds)]


def test_rows_join_slice_and_take_like_a_list():
    parts = [samples("clean", "privacy"), [], samples("insults", "clean", "clean")]
    rows, plain = Rows.join([Rows.of(part) for part in parts]), [row for part in parts for row in part]
    assert list(rows) == plain and rows[-1] == plain[-1] and list(rows[1:4:2]) == plain[1:4:2]
    assert rows.counts() == {("clean", 0): 3, ("privacy", 1): 1, ("insults", 1): 1}
    twice = rows.take(np.array([4, 0, 0]))
    assert list(twice) == [plain[4], plain[0], plain[0]] and list(twice.unique()) == [plain[0], plain[4]]
    assert list(twice[1:].unique()) == [plain[0]] and list(twice.take(np.array([2, 1, 0])).unique()) == [
        plain[0],
        plain[4],
    ]
    assert list(rows.spread(2)) == [plain[0], plain[2]] and rows.spread(9) is rows
    assert list(twice.spread(2)) == [plain[4], plain[0]] and rows.take(np.array([], int)).counts() == {}
    for place in (5, -6):
        with pytest.raises(IndexError):
            rows[place]


@pytest.mark.parametrize("value, fraction", [("5e-1", 0.5), ("1e-1", 0.1), (".5", 0.5)])
def test_training_and_the_check_read_one_number_from_a_yaml(tmp_path, value, fraction):
    path = tmp_path / "stage.yaml"
    path.write_text(
        f"data: {{root: r, train: [{{recipe: custom}}], clean_fraction: {value}}}\n"
        "output: o\nbase: b\nrules: {'.*': null}\n"
    )
    assert read_config(["--config", str(path)]).data == read_data_config(path)[0]
    assert read_data_config(path)[0].clean_fraction == fraction


def test_the_data_part_is_read_from_a_stages_yaml(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text(
        "data: {root: r, train: [{recipe: custom, weight: 2}], clean_fraction: 0.5, hint_rate: 0.9}\n"
        "trainer: {seed: 7}\n"
    )
    config, seed, taxonomy = read_data_config(path)
    assert (config.root, config.train, config.clean_fraction) == ("r", [Source("custom", weight=2)], 0.5)
    assert (seed, taxonomy) == (7, None)
    for text, reason in (
        (
            "data: {root: r, train: [{recipe: custom, wieght: 2}]}",
            "data.train.0.wieght: unknown key; did you mean 'weight'",
        ),
        ("data: {root: r}", "data.train: is missing; add it"),
        ("data: {root: r, trian: [{recipe: custom}]}", "data.trian: unknown key; did you mean 'train'"),
        ("data: {train: [{recipe: custom}]}", "has no data.root"),
        ("train: [custom]\nroot: r", "stage.yaml: train.0: .custom. must be a mapping, such as .recipe: custom."),
        ("- 1", "has no data.train"),
        ("{", "cannot be read as YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            read_data_config(path)
