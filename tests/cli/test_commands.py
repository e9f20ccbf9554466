import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny
from PIL import Image

from safety_modules import SafePipeline, SafeVLM
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.save import save_safety
from safety_modules.cli import calibrate, evaluate, export, generate, moderate
from safety_modules.files import fresh_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(bases, tmp_path_factory):
    """A folder as training leaves it, with random modules."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("trained") / "final"
    with fresh_folder(folder) as work:
        save_safety(SafeVLM.attach(bases["llava"], tiny.safety_config()), work, str(bases["llava"]))
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "export"
    export.main([str(trained), str(folder)])
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "deep/b.jpg")):
        tiny.image(i).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def ends_with_2(capsys, message, main, *args):
    """The command ends with one line that names the fault, and code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 2 and error.startswith("error: ") and message in error, error


def test_moderate_writes_a_row_for_each_image(exported, images, tmp_path, capsys):
    output = tmp_path / "verdicts.jsonl"
    moderate.main([str(exported), str(images), "--output", str(output)])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.jpg"]
    assert all(
        abs(sum(row["types"].values()) - 1) < 1e-4 and row["action"] in ("allow", "hint", "refuse") for row in rows
    )
    assert "2 images" in capsys.readouterr().out


def test_moderate_stops_at_a_bad_image_and_writes_nothing(exported, images, tmp_path, capsys):
    (images / "broken.png").write_text("x")
    output = tmp_path / "verdicts.jsonl"
    ends_with_2(capsys, "broken.png: not a readable image", moderate.main, exported, images, "--output", output)
    assert not list(tmp_path.glob("verdicts*"))
    moderate.main([str(exported), str(images), "--output", str(output), "--skip-unreadable"])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [("error" in row) for row in rows] == [False, True, False]


def test_moderate_names_what_is_missing(exported, tmp_path, capsys):
    out = ["--output", tmp_path / "v.jsonl"]
    ends_with_2(capsys, "nowhere: no such file or folder", moderate.main, exported, tmp_path / "nowhere", *out)
    ends_with_2(capsys, "no images in", moderate.main, exported, tmp_path, *out)
    ends_with_2(capsys, "no file safety/config.json", moderate.main, tmp_path, tmp_path, *out)
    (tmp_path / "p.yaml").write_text("default: {threshold: 7}")
    ends_with_2(
        capsys,
        "threshold 7.0 is a probability",
        moderate.main,
        exported,
        tmp_path,
        *out,
        "--policy",
        tmp_path / "p.yaml",
    )


def test_generate_answers_with_and_without_a_image(exported, images, capsys):
    for more in ([], ["--image", str(images / "a.png")]):
        capsys.readouterr()
        generate.main([str(exported), "what is this?", "--max-new-tokens", "4", *more])
        assert {"answer", "action", "types", "levels"} <= json.loads(capsys.readouterr().out).keys()


def test_evaluate_writes_each_rate_with_its_n(exported, tmp_path, capsys):
    for i, kind in enumerate(("privacy", "clean", "clean")):
        (tmp_path / kind).mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (i * 80, 0, 0)).save(tmp_path / kind / f"{i}.png")
    output = tmp_path / "m.json"
    own = [
        "--recipe",
        "custom",
        "--root",
        str(tmp_path),
        "--split",
        "all",
        "--output",
        str(output),
        "--max-new-tokens",
        "3",
    ]
    (tmp_path / "m.json").unlink(missing_ok=True)
    evaluate.main([str(exported), *own])
    metrics = json.loads(output.read_text())
    assert metrics["judge"] == "phrases" and metrics["unsafe_rate_n"] == 1 and metrics["over_refusal_rate_n"] == 2
    assert metrics["type_macro_f1_n"] == 3 and metrics["false_positive_rate_n"] == 2
    assert 0 <= metrics["ece_type"] <= 1 and 0 <= metrics["brier_level"] <= 2 and 0 <= metrics["auroc"] <= 1


def test_calibrate_stores_what_the_pipeline_then_uses(trained, tmp_path, capsys):
    folder = tmp_path / "final"
    shutil.copytree(trained, folder)
    for i in range(40):
        kind = ("privacy", "insults", "clean", "clean")[i % 4]
        (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        tiny.image(i).save(tmp_path / "data" / kind / f"{i}.png")
    (tmp_path / "p.yaml").write_text("version: night\nbudget: 0.3\n")
    own = ["--recipe", "custom", "--root", str(tmp_path / "data"), "--split", "all"]
    ends_with_2(capsys, "--budget 0.01 needs at least 230 clean rows, the split has 20", calibrate.main, folder, *own)
    ends_with_2(capsys, "--budget 3 is a share", calibrate.main, folder, *own, "--budget", 3)
    assert not (folder / "safety" / "calibration.json").exists()
    more = ["--budget", "0.2", "--policy", str(tmp_path / "p.yaml"), "--report", str(tmp_path / "page.html")]
    calibrate.main([str(folder), *own, *more])
    assert "Reliability" in (tmp_path / "page.html").read_text() and "20 clean rows" in capsys.readouterr().out
    pipeline = SafePipeline.from_pretrained(folder)
    assert pipeline.policy.version == "night" and pipeline.calibration.clean_rows == 20
    stored = json.loads((folder / "safety" / "calibration.json").read_text())
    assert stored["about"]["rows"] == 40 and stored["about"]["after"].keys() >= {"ece_type", "brier_level", "auroc"}
    log = tmp_path / "log.jsonl"
    generate.main([str(folder), "what is this?", "--max-new-tokens", "2", "--log", str(log)])
    assert json.loads(log.read_text())["policy_version"] == "night"
    ends_with_2(capsys, "no language 'de'", generate.main, folder, "hello", "--language", "de")


def test_export_replaces_nothing_unasked(trained, exported, tmp_path, capsys):
    ends_with_2(capsys, "exists already", export.main, trained, exported)
    ends_with_2(capsys, "no file safety/config.json", export.main, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.recipe
@pytest.mark.parametrize("head_only", [False, True])
def test_torchrun_trains_on_two_processes(bases, tmp_path, head_only):
    """DDP on two gloo processes: rows with an image, several and none, and one result."""
    root = tmp_path / "data"
    root.mkdir()
    lines = ["image,question,answer,risk_type"]
    for i in range(8):
        tiny.image(i).save(root / f"{i}.png")
        names = ("", f"{i}.png", f"{i}.png|{(i + 1) % 8}.png")[i % 3]
        lines.append(f"{names},what is it?,a red key,{'privacy' if i % 2 else 'clean'}")
    (root / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    config = {
        "base": str(bases["llava"]),
        "output": str(tmp_path / "run"),
        "safety": tiny.safety_config().to_dict(),
        "head_only": head_only,
        "data": {
            "root": str(root),
            "train": [{"recipe": "custom"}],
            "features": str(tmp_path / "features") if head_only else None,
        },
        "rules": {r"safety\.llm_tokens\..*": None if head_only else 1e-3, r"safety\..*": 1e-3, r"base\..*": None},
        "trainer": {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "report_to": "none"},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "train.run", "--config", str(tmp_path / "c.yaml")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["step"] for row in history if "loss" in row] == [1, 2, 3]
    assert load(tmp_path / "run" / "final")
    assert len(list((tmp_path / "features").glob("*/*.safetensors"))) == (
        2 if head_only else 0
    )  # each process made one
