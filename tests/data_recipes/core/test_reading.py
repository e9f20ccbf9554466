"""How rows become samples: labels, answers, and rows that break a rule."""

import pytest
from helpers.dataset_files import TAXONOMY, reader, write_json

from data_recipes.core.data_config import Source
from data_recipes.core.reading import ExcludedRow
from data_recipes.readers.indexed_json import JsonRows
from safety_modules.sample import DataError, Sample, Turn


def test_categories_that_yaml_reads_as_numbers_and_cells_of_any_kind_have_labels():
    own = reader(labels={3: "privacy:1", "[4]": None})
    assert own.label({}, 3) == own.label({}, "3") == ("privacy", 1)
    with pytest.raises(ExcludedRow):
        own.label({}, [4])
    assert own.label({"Hate & Bias": ("fairness", 2)}, "hate_bias") == ("fairness", 2)
    for category in (None, ["a"], {"a": 1}, 2.5):
        with pytest.raises(DataError, match="unknown category .* or name it in `labels`"):
            own.label({"Hate": ("fairness", 2)}, category)
    own.check_labels_used()


def conversation(*texts):
    return {"conversations": [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]}


@pytest.fixture
def table(tmp_path):
    """A LLaVA file with four rows, two of which break a rule."""
    write_json(
        tmp_path / "t.json", [conversation("Q", "A"), conversation("Q"), conversation("Q", "A2"), {"image": "no.png"}]
    )
    return tmp_path / "t.json"


def test_rows_of_a_large_file_are_built_on_access_and_bad_ones_are_errors_then(table):
    rows, _ = Source("llava_instruct", root=str(table)).read("", TAXONOMY, training=True)
    assert len(rows) == 4 and rows[2].answer == "A2" and rows.counts() == {("clean", 0): 4}
    with pytest.raises(DataError, match="^t.json:2: roles are"):
        rows[1]
    with pytest.raises(DataError, match="^t.json:4: image 'no.png': no such file"):
        rows[3]


def test_bad_rows_of_a_large_file_are_left_out_and_counted_at_once(table, caplog):
    rows, row_reader = Source("llava_instruct", root=str(table), bad_rows="skip").read("", TAXONOMY, training=True)
    assert [row.source for row in rows] == ["t.json:1", "t.json:3"] and len(row_reader.faults) == 2
    assert "2 of 4 rows are left out" in caplog.text
    write_json(table, [conversation("Q")])
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        Source("llava_instruct", root=str(table), bad_rows="skip").read("", TAXONOMY, training=True)


def test_where_answers_are_needed_a_row_without_one_is_refused(table):
    def convert(row):
        return Sample((), (Turn("user", "Q"), Turn("assistant", "")), "clean", 0, row.source)

    assert reader().rows_on_demand(JsonRows(table), convert, ("clean", 0))[0].answer == ""
    with pytest.raises(DataError, match="^t.json:1: has no answer to train a language model on"):
        reader(answers=True).rows_on_demand(JsonRows(table), convert, ("clean", 0))[0]
    with pytest.raises(DataError, match="4 of 4 rows cannot be used\nt.json:1: has no answer"):
        reader(answers=True, bad_rows="skip").rows_on_demand(JsonRows(table), convert, ("clean", 0))
