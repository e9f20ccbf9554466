"""README's tree is the tree: the block under "## The tree" names the folders that exist, and no others."""

import re

import pytest
from helpers.house import PACKAGES, ROOT

HEADING = "## The tree"


@pytest.fixture(scope="module")
def block():
    """Lines of the fenced block below the heading."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    fenced = re.search(r"^```\w*\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert fenced, f"README.md has no fenced block under the heading {HEADING!r}; put the tree of folders there"
    return fenced[1].splitlines()


def folders(lines):
    """Paths of the folders in an indented tree, one a line, each written `name/` at the start of its line."""
    parents, named = {}, set()
    for line in lines:
        if match := re.match(r"( *)([\w.]+)/", line):
            above = [path for indent, path in parents.items() if indent < len(match[1])]
            path = "/".join([*above[-1:], match[2]])
            parents = {indent: path for indent, path in parents.items() if indent < len(match[1])}
            parents[len(match[1])] = path
            named.add(path)
    return named


def test_the_tree_names_every_top_level_folder_and_no_folder_that_is_missing(block):
    named = folders(block)
    assert {path for path in named if not (ROOT / path).is_dir()} == set(), "README's tree has folders that are missing"
    assert {*PACKAGES, "tests", "docs"} <= named


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tree_names_every_room(block, package):
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / package).glob("*/*.py")}
    assert rooms - folders(block) == set(), "README's tree lacks these folders"


def test_an_indented_tree_is_read_with_its_nesting():
    lines = [
        "safety_modules/   installed",
        "  model/  head",
        "    parts/",
        "  eta/",
        "  a.py",
        "train/   run",
        "  loop/",
    ]
    expected = {"safety_modules/model", "safety_modules/model/parts", "safety_modules/eta", "train/loop"}
    assert folders(lines) == {"safety_modules", "train", *expected}
