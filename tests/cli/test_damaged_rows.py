"""A file of rows that is damaged in some way: each row keeps its place, and none stops another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from safety_modules.cli import batch_answers
from safety_modules.config_reader import read_yaml
from safety_modules.errors import UserError
from safety_modules.eta import AnswerGenerator
from safety_modules.eta.config_file import files_of

ROOT = Path(__file__).parents[2]


def test_rows_of_any_kind_of_damage_stop_no_other(tmp_path, bases):
    generator = AnswerGenerator.from_pretrained(bases["llava"])
    lines = [
        '\ufeff{"id": 2, "question": "a"}', "{", '{"id": 3, "messages": [{"role": "user", "content": 5}]}',
        '{"id": 4, "messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]}', "[" * 99999,
        '{"id": "\\ud800", "question": "a"}', '{"id": "4", "question": "a"}', '{"id": 8, "question": "\\ud800"}',
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def answer(asked):
        return [{"answer": text} for text in generator.plain(asked, 4).answers]

    rows, output = batch_answers.read(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl"
    found = list(batch_answers.run(rows, output, {}, answer, 3))
    assert [row["id"] for row in found] == [2, "line 2", 3, 4, "line 5", "\ud800", "4", 8]
    assert [row["id"] for row in found if "error" in row] == ["line 2", 3, 4, "line 5", 8]
    assert [json.loads(line) for line in output.read_bytes().splitlines()] == found
    assert list(batch_answers.run(rows, output, {}, answer, 3)) == []


def test_a_damaged_line_of_an_output_is_named(tmp_path):
    (tmp_path / "out.jsonl").write_text('{"id": 1}\nmine\n')
    (tmp_path / "out.jsonl.run.json").write_text("{}")
    with pytest.raises(UserError, match="line 2 is no answer"):
        list(batch_answers.run([], tmp_path / "out.jsonl", {}, lambda rows: [], 4))


def test_an_empty_file_has_no_answers_and_one_of_other_letters_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    assert (
        list(
            batch_answers.run(
                batch_answers.read(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl", {}, lambda rows: [], 4
            )
        )
        == []
    )
    assert (tmp_path / "out.jsonl").read_text() == ""
    (tmp_path / "rows.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="give a JSON lines file in UTF-8"):
        batch_answers.read(tmp_path / "rows.jsonl")


def test_answers_depend_on_the_files_beside_a_recipe_and_on_the_models(tmp_path):
    model = tmp_path / "reward"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "fitted.json").write_text("1")
    recipe = tmp_path / "eta.yaml"
    recipe.write_text("pre: {kind: head}\npost: {kind: reward, model: reward}\nthresholds: fitted.json\n")
    assert files_of(recipe) == [recipe, tmp_path / "fitted.json", model]
    recipe.write_text("post: {kind: reward, model: owner/name}\n")
    assert files_of(recipe) == [recipe]
    before = batch_answers.state(model)
    assert before == batch_answers.state(model)
    (model / "config.json").write_text("{ }")
    assert batch_answers.state(model) != before != batch_answers.state(recipe)


def test_a_full_disk_keeps_what_is_written_and_says_what_to_do(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from train import answers;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "rows = [batch_answers.Asked(i, []) for i in range(40)];"
        "list(batch_answers.run(rows, Path(sys.argv[1]), {}, lambda asked: [{'answer': 'x' * 20}] * len(asked), 4))"
    )
    output = tmp_path / "out.jsonl"
    run = subprocess.run([sys.executable, "-c", code, str(output)], capture_output=True, text=True, cwd=ROOT)
    assert "make room, and give the same command again" in run.stderr
    again = list(
        batch_answers.run(
            rows := [batch_answers.Asked(i, []) for i in range(40)], output, {}, lambda a: [{"answer": "y"}] * len(a), 4
        )
    )
    found = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [row["id"] for row in found] == [row.id for row in rows] and 20 < len(again) < 40


def test_numbers_are_read_as_people_write_them():
    found = read_yaml("{a: 1e-2, b: -2E5, c: 1.5e+3, d: 1e, e: x1e5, f: [3e0]}")
    assert found == {"a": 0.01, "b": -2e5, "c": 1500.0, "d": "1e", "e": "x1e5", "f": [3.0]}
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.getcwd []")
