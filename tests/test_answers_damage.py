"""A file of rows that is damaged in some way: each row keeps its place, and none stops another."""

import json

import pytest

from safety_modules.errors import UserError
from safety_modules.eta import Speaker
from train import answers


def test_rows_of_any_kind_of_damage_stop_no_other(tmp_path, bases):
    speaker = Speaker.from_pretrained(bases["llava"])
    lines = [
        '\ufeff{"id": 2, "question": "a"}', "{", '{"id": 3, "messages": [{"role": "user", "content": 5}]}',
        '{"id": 4, "messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]}', "[" * 99999,
        '{"id": "\\ud800", "question": "a"}', '{"id": "4", "question": "a"}', '{"id": 8, "question": "\\ud800"}',
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def answer(asked):
        return [{"answer": text} for text in speaker.plain(asked, 4).answers]

    rows, output = answers.read(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    found = list(answers.run(rows, output, {}, answer, 3))
    assert [row["id"] for row in found] == [2, "line 2", 3, 4, "line 5", "\ud800", "4", 8]
    assert [row["id"] for row in found if "error" in row] == ["line 2", 3, 4, "line 5", 8]
    assert [json.loads(line) for line in output.read_bytes().splitlines()] == found
    assert list(answers.run(rows, output, {}, answer, 3)) == []


def test_a_damaged_line_of_an_output_is_named(tmp_path):
    (tmp_path / "out.jsonl").write_text('{"id": 1}\nmine\n')
    (tmp_path / "out.jsonl.run.json").write_text("{}")
    with pytest.raises(UserError, match="line 2 is no answer"):
        list(answers.run([], tmp_path / "out.jsonl", {}, lambda rows: [], 4))


def test_an_empty_file_has_no_answers_and_one_of_other_letters_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    assert list(answers.run(answers.read(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl", {}, lambda rows: [], 4)) == []
    assert (tmp_path / "out.jsonl").read_text() == ""
    (tmp_path / "rows.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="give a JSON lines file in UTF-8"):
        answers.read(tmp_path / "rows.jsonl")
