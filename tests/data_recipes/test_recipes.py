"""Recipes: found by file name, loaded with their labels checked."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import data_recipes
from data_recipes.core.about import About
from safety_modules.sample import DataError, Sample, Turn
from safety_modules.taxonomy import Taxonomy

TURNS = (Turn("user", "Q"), Turn("assistant", "A"))


def serve(monkeypatch, samples):
    """Make `load` find one recipe, `fake`, that gives these samples; its calls are recorded."""
    calls = []
    about = About(title="Fake", published="", licence="none", splits=())
    module = SimpleNamespace(ABOUT=about, samples=lambda *args: calls.append(args) or samples)
    monkeypatch.setattr(data_recipes, "names", lambda: ["fake"])
    monkeypatch.setattr(data_recipes, "import_module", lambda name: {"data_recipes.fake": module}[name])
    return calls


def test_names_are_the_files_that_are_recipes():
    names = data_recipes.names()
    assert {"custom", "riskworld"} <= set(names)
    assert "sample" not in names and not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize("name", ["costum", "sample", "_table", "../custom", "custom.x", ""])
def test_unknown_recipe_is_an_error_with_the_valid_names(name, tmp_path):
    with pytest.raises(DataError, match="unknown recipe .*valid names: .*custom"):
        data_recipes.load(name, tmp_path, "train", Taxonomy.default())


def test_unknown_recipe_suggests_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean 'custom'"):
        data_recipes.load("costum", tmp_path, "train", Taxonomy.default())


def test_load_hands_on_root_split_and_taxonomy(monkeypatch, tmp_path):
    rows = [Sample((), TURNS, "privacy", 2, "f:1")]
    taxonomy = Taxonomy.default()
    calls = serve(monkeypatch, rows)
    assert data_recipes.load("fake", str(tmp_path), "train", taxonomy) == rows
    ((root, split, reading),) = calls
    assert (root, split, reading.taxonomy) == (tmp_path, "train", taxonomy)


def test_empty_split_names_recipe_root_and_split(monkeypatch, tmp_path):
    serve(monkeypatch, [])
    with pytest.raises(DataError, match="recipe 'fake' has no rows in split 'test' of .*; name another") as error:
        data_recipes.load("fake", tmp_path, "test", Taxonomy.default())
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "label, reason", [(("privcy", 2), "did you mean 'privacy'"), (("clean", 1), "level 0"), (("privacy", 9), "0 to 3")]
)
def test_label_outside_the_taxonomy_names_the_row(monkeypatch, tmp_path, label, reason):
    serve(monkeypatch, [Sample((), TURNS, "clean", 0, "f:1"), Sample((), TURNS, *label, "f:2")])
    with pytest.raises(DataError, match=rf"^f:2: .*{reason}"):
        data_recipes.load("fake", tmp_path, "train", Taxonomy.default())


def test_recipes_do_not_import_torch():
    code = "import sys, data_recipes.custom; assert not {'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=data_recipes.__path__[0] + "/..")
