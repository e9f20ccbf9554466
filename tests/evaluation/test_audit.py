"""Audits: scores of every image of a data set, and the kept rows of its table."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from helpers import tiny
from helpers.dataset_files import drawn, write_csv, write_json, write_parquet

from data_recipes.readers.image_table import ImageTable
from safety_modules import SafeVLM, ask
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.save import save_safety
from safety_modules.cli.main import main
from safety_modules.evaluation.audit import Audit, ProcessRank, judge
from safety_modules.pipeline import ASSESS
from safety_modules.prompt.messages import QUESTION
from safety_modules.sample import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def trained(request, bases, tmp_path_factory):
    """A folder as stage 1 leaves it, untrained."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("trained") / "final"
    folder.mkdir()
    model = SafeVLM.attach(bases[request.param], tiny.safety_config())
    save_safety(model, folder, base=str(bases[request.param]))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Twelve images and a file that is not an image."""
    home = tmp_path / "images"
    (home / "deep").mkdir(parents=True)
    for number in range(12):
        tiny.image(number).save(home / ("deep" if number % 2 else ".") / f"{number:02d}.png")
    (home / "broken.png").write_text("none")
    return home


def test_scores_are_those_of_the_head_on_each_image_alone_and_no_language_model_is_loaded(trained, folder):
    whole = load(trained)
    model = load(trained, language_model=False)
    assert not any("language_model.layers" in name or "lm_head" in name for name in model.state_dict())
    data = ImageTable.read(folder)
    rows = list(judge(model, list(data.images.values()), list(data.images), 5, 0, QUESTION))
    assert [row["image"] for row in rows] == list(data.images)
    for row in rows:
        if row["image"] == "broken.png":
            assert "not a readable image" in row["error"]
            continue
        batch = whole.processor.collate([whole.processor.encode(ask(QUESTION, [folder / row["image"]]))])
        expected = whole.assess(**{name: batch[name] for name in ASSESS if name in batch})
        assert torch.allclose(torch.tensor(row["types"]), expected.type_logits[0], atol=1e-4)


def arguments(data, trained, output):
    options = {"--data": data, "--model": trained, "--output": output, "--workers": 0, "--device": "cpu"}
    return [str(value) for option in options.items() for value in option]


def test_the_command_writes_scores_summary_gallery_and_the_kept_images_of_a_folder(trained, folder, tmp_path, capsys):
    main(["audit", *arguments(folder, trained, tmp_path / "out")])
    table = parquet.read_table(tmp_path / "out/scores.parquet").to_pylist()
    assert len(table) == 13 and sum(bool(row["error"]) for row in table) == 1
    readable = [row for row in table if not row["error"]]
    for row in readable:
        assert (
            abs(sum(value for name, value in row.items() if name.startswith("p_") and "level" not in name) - 1) < 1e-5
        )
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["images"], summary["unreadable"], summary["rows"]) == (13, 1, 13)
    kept = (tmp_path / "out/kept.txt").read_text().splitlines()
    assert kept == [row["image"] for row in readable if row["action"] == "allow"] and summary["rows_kept"] == len(kept)
    page = (tmp_path / "out/gallery.html").read_text()
    assert page.count("<img ") == 12 and "broken.png" in page
    assert page.count('class="view" aria-pressed="false"') == 12 - len(kept)


def audited(data, trained, tmp_path, threshold, output="out", *more):
    policy = tmp_path / f"policy{threshold}.yaml"
    policy.write_text(f"default: {{threshold: {threshold}}}\n")
    main(["audit", *arguments(data, trained, tmp_path / output), *more, "--policy", str(policy)])
    return tmp_path / output


def test_a_llava_json_keeps_its_rows_byte_for_byte(trained, folder, tmp_path):
    turns = [{"from": "human", "value": '<image>\n"é\\?'}, {"from": "gpt", "value": "A."}]
    rows = [
        {"id": 1, "image": "00.png", "conversations": turns},
        {"id": 2, "conversations": turns[1:]},
        {"id": 3, "image": ["00.png", "02.png"], "conversations": turns},
        {"id": 4, "image": "broken.png", "conversations": turns},
        {"id": 5, "image": "../no.png", "conversations": turns},
    ]
    write_json(folder / "rows.json", rows)
    kept = audited(folder / "rows.json", trained, tmp_path, 1.0) / "kept.json"
    assert json.loads(kept.read_text()) == rows[:3]
    assert json.dumps(rows[0]) in kept.read_text()
    everything = audited(folder / "rows.json", trained, tmp_path, 0.0) / "kept.json"  # the same scores, another policy
    assert json.loads(everything.read_text()) == [rows[1]]
    write_json(tmp_path / "elsewhere.jsonl", rows, lines=True)
    lines = (
        audited(tmp_path / "elsewhere.jsonl", trained, tmp_path, 1.0, "lines", "--images", str(folder)) / "kept.jsonl"
    )
    assert [json.loads(line) for line in lines.read_text().splitlines()] == rows[:3]


def test_csv_and_parquet_keep_their_columns(trained, folder, tmp_path):
    write_csv(folder / "t.csv", [{"image": name, "note": 'a,"b"'} for name in ("00.png", "broken.png", "02.png")])
    kept = audited(folder / "t.csv", trained, tmp_path, 1.0, "csv") / "kept.csv"
    assert kept.read_text().splitlines()[0] == "image,note" and len(kept.read_text().splitlines()) == 3
    write_parquet(
        tmp_path, "set/t.parquet", [{"image": drawn(n) if n != 1 else None, "text": f"t{n}"} for n in range(4)]
    )
    kept = audited(tmp_path / "set/t.parquet", trained, tmp_path, 1.0, "parquet") / "kept.parquet"
    assert parquet.read_table(kept).column("text").to_pylist() == ["t0", "t1", "t2", "t3"]
    kept = audited(tmp_path / "set/t.parquet", trained, tmp_path, 0.0, "parquet") / "kept.parquet"
    assert parquet.read_table(kept).column("text").to_pylist() == ["t1"]


def test_an_interrupted_audit_is_continued_and_processes_divide_the_images(trained, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("safety_modules.evaluation.audit.ROWS_PER_PART", 2)
    data, run = ImageTable.read(folder), Audit(trained, tmp_path / "out")
    real = judge

    def cut_off(*args):
        for number, row in enumerate(real(*args)):
            if number == 5:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr("safety_modules.evaluation.audit.judge", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.run(data, 3, 0)
    assert run.scores().num_rows == 4
    judged = []
    monkeypatch.setattr(
        "safety_modules.evaluation.audit.judge",
        lambda model, images, names, *rest: judged.extend(names) or real(model, images, names, *rest),
    )
    for rank in range(3):
        run.run(data, 3, 0, process=ProcessRank(rank, 3))
    assert sorted(run.scores()["image"].to_pylist()) == sorted(data.images) and len(judged) == 9


def test_an_output_of_other_data_is_refused(trained, folder, tmp_path, capsys):
    audited(folder, trained, tmp_path, 0.5)
    with pytest.raises(SystemExit):
        audited(folder / "deep", trained, tmp_path, 0.5)
    assert "holds scores of another run (data differ); name another output" in capsys.readouterr().err


def test_a_policy_that_cannot_be_used_is_an_error_before_the_images_are_scored(trained, folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        audited(folder, trained, tmp_path, 7)
    assert "threshold 7 is a probability" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_after_a_kill_two_processes_score_the_remaining_images(trained, folder, tmp_path):
    for number in range(300):
        tiny.image(number).save(folder / f"more{number}.png")
    options = arguments(folder, trained, tmp_path / "out")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    slow = (
        "from safety_modules.cli.main import main; from safety_modules.evaluation import audit;"
        f"audit.ROWS_PER_PART = 4; main({['audit', *options, '--batch-size', '2']})"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out/parts").glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.kill()
    first.wait()
    before = sum(parquet.read_table(part).num_rows for part in (tmp_path / "out/parts").glob("*.parquet"))
    assert 0 < before < 313 and not (tmp_path / "out/scores.parquet").exists()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "safety_modules.cli", "audit"]
    done = subprocess.run([*command, *options], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    table = parquet.read_table(tmp_path / "out/scores.parquet")
    assert table.num_rows == len(set(table["image"].to_pylist())) == 313


@pytest.mark.parametrize(
    "name, text, reason", [("a.json", "[]", "names no image"), ("b.csv", "x,y\n1,2\n", "names no image")]
)
def test_data_without_images_is_an_error(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        ImageTable.read(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read|names no image"):
        ImageTable.read(tmp_path / "none.json")
