"""Page: what docs/your-data.md shows is what happens."""

import re
from pathlib import Path

import pytest
from helpers.own_tables import fault, rows, touch

from safety_modules.taxonomy import Taxonomy, TaxonomyError

DOC = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text(encoding="utf-8")


def blocks(language):
    """The page's code blocks of a language, "" for those without one."""
    return [
        text
        for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", DOC, flags=re.MULTILINE | re.DOTALL)
        if name == language
    ]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page's folder `own` with its images, and its taxonomy."""
    monkeypatch.chdir(tmp_path)
    touch(Path("own"), "img/p1.jpg", "img/cat.jpg", "img/front.png", "img/back.png")
    Path("own.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    return Taxonomy.from_yaml("own.yaml")


def test_taxonomy_of_the_page_loads(page):
    assert page.type_names == ["weapons", "documents", "clean"] and len(page.levels) == 3
    assert all(page.questions) and all(level.answers for level in page.levels)


def test_tables_of_the_page_load(page):
    Path("own/labels.csv").write_text(blocks("csv")[0], encoding="utf-8")
    read = rows(Path("own"), taxonomy=page)
    assert [(sample.risk_type, sample.risk_level) for sample in read] == [
        ("weapons", 1),
        ("clean", 0),
        ("documents", 2),
        ("documents", 2),
    ]
    Path("own/more.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    assert len(rows(Path("own/more.jsonl"), taxonomy=page)) == 2


def test_errors_of_the_page_are_what_is_printed(page):
    Path("own/labels.csv").write_text(blocks("csv")[1], encoding="utf-8")
    assert fault(Path("own"), taxonomy=page) + "\n" in blocks("")


def test_page_taxonomy_without_clean_is_refused(page):
    text = "\n".join(line for line in blocks("yaml")[0].splitlines() if "clean:" not in line)
    Path("own.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(TaxonomyError, match="exactly one must be named 'clean'"):
        Taxonomy.from_yaml("own.yaml")
