"""Files of rows, damaged or not: each row keeps its place, none stops another, and a run is continued."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny

from data_recipes.readers import files
from safety_modules.errors import UserError
from safety_modules.eta import StockGenerator
from safety_modules.evaluation import batch_answers
from safety_modules.evaluation.batch_answers import QuestionRow

ROOT = Path(__file__).parents[2]


def read_rows(path):
    return batch_answers.read(path, files.image_path)


def written(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_a_row_that_cannot_be_answered_keeps_its_place_and_stops_no_other(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    tiny.image(0).save(tmp_path / "a.png")
    lines = [
        '{"question": "a"}', "{", '{"question": ""}', '{"question": "b", "image": "../a.png"}',
        '{"question": "c", "image": "none.png"}',
        '{"id": 7.5, "question": "d"}', '{"question": "e", "image": "broken.png"}', '{"messages": [{"role": "user"}]}',
        '{"messages": "hi"}', "[]", '{"question": "f", "image": ["a.png", "a.png"]}',
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n\n")

    def answer(exchanges):
        if any("broken" in str(message) for message in exchanges):
            raise UserError("broken.png: not a readable image")
        return [{"answer": f"{len(exchange[0]['content'])} parts"} for exchange in exchanges]

    entries = list(batch_answers.run(read_rows(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl", {}, answer, 4))
    assert entries == written(tmp_path / "out.jsonl")
    assert entries[0] == {"id": 1, "answer": "1 parts"} and entries[10] == {"id": 11, "answer": "3 parts"}
    errors = {row["id"]: row["error"] for row in entries if "error" in row}
    expected = {
        "line 2": "line 2: Expecting",
        3: "question is ''",
        4: "leaves",
        5: "no such file",
        "line 6": "id 7.5 must be a text",
        7: "not a readable",
    }
    assert set(errors) == {*expected, 8, 9, "line 10"} and all(
        text in errors[number] for number, text in expected.items()
    )


def test_two_rows_with_one_id_and_an_output_without_a_stamp_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "x", "question": "a"}\n{"id": "x", "question": "b"}\n')
    with pytest.raises(UserError, match="rows 1 and 2 have the same id 'x'"):
        read_rows(tmp_path / "rows.jsonl")
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="does not say what it was made from; name another output"):
        list(batch_answers.run([], tmp_path / "out.jsonl", {}, lambda rows: [], 4))
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"


def test_a_stamp_whose_output_is_deleted_counts_no_more(tmp_path):
    output = tmp_path / "out.jsonl"
    list(batch_answers.run([], output, {"model": "a"}, lambda rows: [], 4))
    with pytest.raises(UserError, match="holds answers of another run"):
        list(batch_answers.run([], output, {"model": "b"}, lambda rows: [], 4))
    output.unlink()
    assert list(batch_answers.run([], output, {"model": "b"}, lambda rows: [], 4)) == [] and output.exists()


def test_rows_of_any_kind_of_damage_stop_no_other(tmp_path, bases):
    generator = StockGenerator.from_pretrained(bases["llava"])
    lines = [
        '\ufeff{"id": 2, "question": "a"}', "{", '{"id": 3, "messages": [{"role": "user", "content": 5}]}',
        '{"id": 4, "messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]}', "[" * 99999,
        '{"id": "\\ud800", "question": "a"}', '{"id": "4", "question": "a"}', '{"id": 8, "question": "\\ud800"}',
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def answer(exchanges):
        return [{"answer": text} for text in generator.greedy(exchanges, 4).answers]

    rows, output = read_rows(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    entries = list(batch_answers.run(rows, output, {}, answer, 3))
    assert [row["id"] for row in entries] == [2, "line 2", 3, 4, "line 5", "\ud800", "4", 8]
    assert [row["id"] for row in entries if "error" in row] == ["line 2", 3, 4, "line 5", 8]
    assert [json.loads(line) for line in output.read_bytes().splitlines()] == entries
    assert list(batch_answers.run(rows, output, {}, answer, 3)) == []


def test_a_damaged_line_of_an_output_is_named(tmp_path):
    (tmp_path / "out.jsonl").write_text('{"id": 1}\nmine\n')
    (tmp_path / "out.jsonl.run.json").write_text("{}")
    with pytest.raises(UserError, match="line 2 is not an answer"):
        list(batch_answers.run([], tmp_path / "out.jsonl", {}, lambda rows: [], 4))


def test_an_empty_file_has_no_answers_and_another_encoding_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    rows, output = read_rows(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    assert list(batch_answers.run(rows, output, {}, lambda rows: [], 4)) == [] and output.read_text() == ""
    (tmp_path / "rows.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="give a JSON lines file in UTF-8"):
        read_rows(tmp_path / "rows.jsonl")


def test_a_full_disk_keeps_what_is_written_and_says_what_to_do(tmp_path):
    code = (
        "import resource, signal, sys; from pathlib import Path; from safety_modules.evaluation import batch_answers;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY));"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "rows = [batch_answers.QuestionRow(i, []) for i in range(40)];"
        "list(batch_answers.run(rows, Path(sys.argv[1]), {}, lambda rows: [{'answer': 'x' * 20}] * len(rows), 4))"
    )
    output = tmp_path / "out.jsonl"
    run = subprocess.run([sys.executable, "-c", code, str(output)], capture_output=True, text=True, cwd=ROOT)
    assert "free space, and run the same command again" in run.stderr
    rows = [QuestionRow(i, []) for i in range(40)]
    rest = list(batch_answers.run(rows, output, {}, lambda rows: [{"answer": "y"}] * len(rows), 4))
    assert [row["id"] for row in written(output)] == [row.id for row in rows] and 20 < len(rest) < 40
