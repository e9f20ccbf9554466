"""`safety-modules generate`: one question, or a file of rows; an interrupted run is continued."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import tiny
from helpers.tiny_evaluators import eta_folders

from safety_modules.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bases):
    return eta_folders(tmp_path_factory.mktemp("eta"), bases["llava"])


def write_rows(folder, count=5):
    tiny.image(0).save(folder / "a.png")
    lines = [{"id": f"row {i}", "question": f"what is it? {i}", "image": "a.png"} for i in range(count)]
    lines[1] = {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "why\u2028?"}]}
        ]
    }
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    return folder / "rows.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_a_file_of_rows_is_answered_once(folders, tmp_path, bases, capsys):
    table, output = write_rows(tmp_path), tmp_path / "out" / "answers.jsonl"
    args = ["generate", str(bases["llava"]), "--rows", str(table), "--output", str(output), "--batch-size", "2"]
    args += ["--eta", str(folders / "eta.yaml"), "--max-new-tokens"]
    main([*args, "8"])
    answers = read(output)
    assert [row["id"] for row in answers] == ["row 0", 2, "row 2", "row 3", "row 4"]
    reason = "the aligned answer is unsafe as well"
    assert all(row["eta"]["stage"] == "refused" and row["eta"]["reason"] == reason for row in answers)
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) * 3 // 5])  # as a kill leaves it, in the middle of a line
    main([*args, "8"])
    first, second = answers, read(output)
    for row in (*first, *second):
        row["eta"]["seconds"] = None
    assert first == second
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["answered_now"] in (2, 3)
    with pytest.raises(SystemExit, match="2"):
        main([*args, "9"])
    assert "holds answers of another run (max_new_tokens differ)" in capsys.readouterr().err


def test_a_run_that_is_killed_is_continued(folders, tmp_path):
    table, output = write_rows(tmp_path, 60), tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "safety_modules.cli", "generate", str(folders / "safe"), "--rows", str(table)]
    command += ["--output", str(output), "--max-new-tokens", "16", "--batch-size", "1"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not output.exists() or output.read_bytes().count(b"\n") < 3:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = output.read_bytes()
    assert before.count(b"\n") < 60
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = output.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1]) and len({str(row["id"]) for row in read(output)}) == 60


def test_a_stock_model_needs_eta_and_has_no_policy(bases, capsys):
    for more in ([], ["--language", "de"]):
        with pytest.raises(SystemExit, match="2"):
            main(["generate", str(bases["llava"]), "what?", *more])
        assert "has no safety/, so no policy, language or log; give --eta" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["generate", str(bases["llava"])])
    assert "give a question, or --rows and --output" in capsys.readouterr().err


def test_one_question_with_eta(folders, capsys):
    args = [str(folders / "safe"), "what is it?", "--eta", str(folders / "eta.yaml"), "--max-new-tokens", "6"]
    main(["generate", *args])
    answer = json.loads(capsys.readouterr().out)
    assert answer["eta"]["stage"] == "refused" and answer["eta"]["sampled"] > 0 and "types" in answer


def test_an_eta_config_file_is_checked_before_the_model_is_loaded(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("safety_modules.pipeline.SafePipeline.from_pretrained", None)
    (tmp_path / "eta.yaml").write_text("post: {kind: rewards}\n")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", str(folders / "safe"), "what is it?", "--eta", str(tmp_path / "eta.yaml")])
    assert "kind 'rewards'; did you mean 'reward'" in capsys.readouterr().err
