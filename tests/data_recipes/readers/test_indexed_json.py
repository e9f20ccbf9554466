"""Rows of a large JSON file, read by their place in it."""

import json
import multiprocessing
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_recipes.readers import indexed_json
from data_recipes.readers.indexed_json import JsonRows
from safety_modules.sample import DataError

TEXT = st.text(st.sampled_from('"\\{}[],:\n é😀ab'), max_size=12)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ROW = st.dictionaries(TEXT, VALUE, max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, max_size=6), indent=st.sampled_from([None, 0, 3]), ascii=st.booleans(), chunk=st.integers(1, 64)
)
def test_an_array_has_the_rows_that_json_reads_wherever_a_chunk_ends(tmp_path, monkeypatch, rows, indent, ascii, chunk):
    monkeypatch.setattr(indexed_json, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii)
    path.write_bytes(("\ufeff \n" + text).encode())
    assert list(JsonRows(path)) == rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=6),
    mark=st.sampled_from(["", "\ufeff"]),
    ascii=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\r\n \r\n", "\n     \t  \n"]),
    last=st.booleans(),
)
def test_lines_have_the_rows_that_json_reads(tmp_path, rows, mark, ascii, end, last):
    path = tmp_path / "rows.jsonl"
    text = mark + end.join(json.dumps(row, ensure_ascii=ascii) for row in rows) + end * last
    path.write_bytes(text.encode())
    assert list(JsonRows(path)) == rows


@pytest.mark.parametrize("length", range(1, 20))
@pytest.mark.parametrize("chunk", [1, 2, 7, 16])
def test_a_quote_behind_a_run_of_backslashes_is_escaped_by_an_odd_one(tmp_path, monkeypatch, length, chunk):
    monkeypatch.setattr(indexed_json, "CHUNK", chunk)
    rows = [{"a": "\\" * length + '"' * (length % 3) + "]}"}, {"\\": "[{"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert list(JsonRows(path)) == rows


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, {"b": "x', '[{"a": 1}, {"b": 2}', '[{"a": "1}]', "[{]", '[{"a": 1}] "', "[{}]]"]
)
def test_a_file_that_is_cut_off_is_an_error(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match="rows.json: ends inside a value: it is cut off"):
        JsonRows(path)


def test_the_last_of_the_lines_that_is_cut_off_is_an_error_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "tw')
    rows = JsonRows(path)
    assert len(rows) == 2 and rows[0] == {"a": 1}
    with pytest.raises(DataError, match="rows.jsonl:2: is not JSON"):
        rows[1]


@pytest.mark.parametrize(
    "value",
    [b"nonsense", b'"\xe9"', b"1" * 5000, b"[" * 100_000 + b"]" * 100_000],
    ids=["word", "latin-1", "digits", "deep"],
)
def test_a_row_that_is_not_json_is_named_and_the_others_are_read(tmp_path, value):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": 1}, {"a": %b}, {"a": 3}]' % value)
    rows = JsonRows(path)
    assert len(rows) == 3 and rows[2] == {"a": 3} and rows.source(1) == "rows.json:2"
    with pytest.raises(DataError, match="rows.json:2: is not JSON"):
        rows[1]


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="none.json: cannot be read"):
        JsonRows(tmp_path / "none.json")
    for name, text in (("a.json", "[]"), ("b.jsonl", ""), ("c.jsonl", "\n\n    \n")):
        (tmp_path / name).write_text(text)
        assert len(JsonRows(tmp_path / name)) == 0


def test_rows_are_read_in_other_processes(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"n": number, "text": "x" * number} for number in range(200)]))
    rows = pickle.loads(pickle.dumps(JsonRows(path)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert [row["n"] for row in pool.map(rows.__getitem__, range(200), chunksize=3)] == list(range(200))
