"""The command `safety-modules`: what each subcommand writes, prints and refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny
from PIL import Image

from safety_modules import SafePipeline, SafeVLM, ask
from safety_modules.checkpoints.save import save_safety
from safety_modules.cli.main import COMMANDS, main
from safety_modules.cli.options import device_and_dtype
from safety_modules.config import ConfigError
from safety_modules.files import fresh_folder
from safety_modules.model.load_base import load_base

ROOT = Path(__file__).parents[2]


def command(*args):
    main([str(arg) for arg in args])


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
    command("export", trained, folder)
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "deep/b.jpg")):
        tiny.image(i).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def labelled(tmp_path):
    """Forty rows for the recipe `custom`, half of them clean."""
    for i in range(40):
        kind = ("privacy", "insults", "clean", "clean")[i % 4]
        (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        tiny.image(i).save(tmp_path / "data" / kind / f"{i}.png")
    return ["--recipe", "custom", "--root", tmp_path / "data", "--split", "all"]


def ends_with_2(capsys, message, *args):
    """The command ends with one line that names the fault, and code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        command(*args)
    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 2 and error.startswith("error: ") and message in error, error


def test_help_lists_the_commands_and_loads_no_torch():
    code = (
        "import sys; from safety_modules.cli.main import build_parser; text = build_parser().format_help();"
        "assert not {'torch', 'transformers', 'pyarrow', 'datasets'} & set(sys.modules); print(text)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(f"    {name}" in run.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_with_the_defaults(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        command(name, "--help")
    text = capsys.readouterr().out
    assert f"safety-modules {name}" in text and "%(" not in text
    if name != "extend":
        assert "(auto)" in text and "--dtype" in text


@pytest.mark.parametrize(
    "args, message",
    [
        (["moderate", "m", "i", "--batch-size", "0"], "--batch-size: '0' must be a whole number from 1"),
        (["generate", "m", "q", "--max-new-tokens", "two"], "--max-new-tokens: 'two' must be a whole number from 1"),
        (["audit", "--workers", "-1"], "--workers: '-1' must be a whole number from 0"),
        (["calibrate", "m", "--budget", "3"], "--budget: '3' must be a fraction, above 0 and below 1"),
        (["thresholds", "--budget", "nan"], "--budget: 'nan' must be a fraction"),
        (["evaluate", "m", "--policy", "none.yaml"], "--policy: none.yaml: no such file"),
        (["generate", "m", "q", "--image", "none.png"], "--image: none.png: no such file"),
        (["moderate", "m", "i", "--dtype", "float8"], "--dtype: invalid choice: 'float8'"),
        (["moderat"], "invalid choice: 'moderat'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_option_is_one_line(args, message, capsys):
    ends_with_2(capsys, message, *args)


def test_a_device_that_does_not_exist_is_one_line(exported, images, tmp_path, capsys):
    args = ["moderate", exported, images, "--output", tmp_path / "o"]
    ends_with_2(capsys, "device 'abacus': cannot be used", *args, "--device", "abacus")


def test_auto_is_bfloat16_where_a_cpu_would_run_float16(bases, tmp_path):
    load_base(bases["llava"], torch.float16).save_pretrained(tmp_path / "half")

    def chosen(folder, dtype, device="cpu"):
        return device_and_dtype(type("Options", (), {"device": device, "dtype": dtype}), folder)

    assert chosen(tmp_path / "half", "auto") == ("cpu", "bfloat16")
    assert chosen(tmp_path / "half", "float16") == ("cpu", "float16")
    assert chosen(tmp_path / "half", "auto", "meta") == ("meta", "float16")
    assert chosen(bases["llava"], "auto") == ("cpu", "float32")
    assert chosen(tmp_path / "none", "auto") == ("cpu", "auto")  # loading it says what is wrong


def test_the_head_alone_is_loaded_where_nothing_is_answered(exported, images, labelled, tmp_path, monkeypatch):
    calls = []

    def recorded(base, dtype="auto", language_model=True, quantize=None):
        calls.append(language_model)
        return load_base(base, dtype, language_model, quantize)

    monkeypatch.setattr("safety_modules.checkpoints.load.load_base", recorded)
    folder = shutil.copytree(exported, tmp_path / "copy")
    command("moderate", folder, images, "--output", tmp_path / "v.jsonl")
    command("audit", "--model", folder, "--data", images, "--output", tmp_path / "audit", "--workers", 0)
    command("calibrate", folder, *labelled, "--budget", 0.2)
    assert calls == [False] * 3
    pipeline = SafePipeline.from_pretrained(folder, language_model=False)
    ((assessment, _),) = pipeline.decide([ask("hello")])
    assert assessment.types == SafePipeline.from_pretrained(folder).assess([ask("hello")])[0].types
    pipeline.policy = pipeline.policy.from_dict({"default": {"threshold": 1.0}}, pipeline.model.taxonomy)
    for answer in (lambda: pipeline([ask("hello")]), lambda: list(pipeline.stream(ask("hello")))):
        with pytest.raises(ConfigError, match="language_model=False, so it cannot answer"):
            answer()


def test_moderate_writes_a_row_for_each_image(exported, images, tmp_path, capsys):
    output = tmp_path / "verdicts.jsonl"
    command("moderate", exported, images, "--output", output)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.jpg"]
    for row in rows:
        assert abs(sum(row["types"].values()) - 1) < 1e-4 and row["action"] in ("allow", "hint", "refuse")
    assert "2 images" in capsys.readouterr().out


def test_moderate_stops_at_a_bad_image_and_writes_nothing(exported, images, tmp_path, capsys):
    (images / "broken.png").write_text("x")
    output = tmp_path / "verdicts.jsonl"
    ends_with_2(capsys, "broken.png: not a readable image", "moderate", exported, images, "--output", output)
    assert not list(tmp_path.glob("verdicts*"))
    command("moderate", exported, images, "--output", output, "--skip-unreadable")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [("error" in row) for row in rows] == [False, True, False]


def test_moderate_names_what_is_missing(exported, images, tmp_path, capsys):
    out = ["--output", tmp_path / "v.jsonl"]
    (tmp_path / "empty").mkdir()
    ends_with_2(capsys, "nowhere: no such file or folder", "moderate", exported, tmp_path / "nowhere", *out)
    ends_with_2(capsys, "no images in", "moderate", exported, tmp_path / "empty", *out)
    ends_with_2(capsys, "no file safety/config.json", "moderate", tmp_path, images, *out)
    (tmp_path / "p.yaml").write_text("default: {threshold: 7}")
    policy = ["--policy", tmp_path / "p.yaml"]
    ends_with_2(capsys, "threshold 7 is a probability", "moderate", exported, images, *out, *policy)


def test_generate_answers_with_and_without_an_image(exported, images, capsys):
    for more in ([], ["--image", images / "a.png"]):
        capsys.readouterr()
        command("generate", exported, "what is this?", "--max-new-tokens", 4, *more)
        assert {"answer", "action", "types", "levels"} <= json.loads(capsys.readouterr().out).keys()


def test_evaluate_writes_each_rate_with_its_n(exported, tmp_path):
    for i, kind in enumerate(("privacy", "clean", "clean")):
        (tmp_path / kind).mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (i * 80, 0, 0)).save(tmp_path / kind / f"{i}.png")
    rows = ["--recipe", "custom", "--root", tmp_path, "--split", "all"]
    command("evaluate", exported, *rows, "--output", tmp_path / "m.json", "--max-new-tokens", 3)
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["judge"] == "phrases" and metrics["unsafe_rate_n"] == 1 and metrics["over_refusal_rate_n"] == 2
    assert metrics["type_macro_f1_n"] == 3 and metrics["false_positive_rate_n"] == 2
    assert 0 <= metrics["ece_type"] <= 1 and 0 <= metrics["brier_level"] <= 2 and 0 <= metrics["auroc"] <= 1


def test_calibrate_stores_what_the_pipeline_then_uses(trained, labelled, tmp_path, capsys):
    folder = tmp_path / "final"
    shutil.copytree(trained, folder)
    message = "--budget 0.01 needs at least 230 clean rows, the split has 20"
    ends_with_2(capsys, message, "calibrate", folder, *labelled)
    (tmp_path / "p.yaml").write_text("version: night\nbudget: 0.01\n")
    policy = ["--budget", 0.2, "--policy", tmp_path / "p.yaml"]
    ends_with_2(capsys, "p.yaml", "calibrate", folder, *labelled, *policy)
    assert not (folder / "safety" / "calibration.json").exists()
    (tmp_path / "p.yaml").write_text("version: night\nbudget: 0.3\n")
    command("calibrate", folder, *labelled, *policy, "--report", tmp_path / "page.html")
    assert "Reliability" in (tmp_path / "page.html").read_text() and "20 clean rows" in capsys.readouterr().out
    pipeline = SafePipeline.from_pretrained(folder)
    assert pipeline.policy.version == "night" and pipeline.calibration.clean_rows == 20
    stored = json.loads((folder / "safety" / "calibration.json").read_text())
    assert stored["about"]["rows"] == 40 and stored["about"]["after"].keys() >= {"ece_type", "brier_level", "auroc"}
    log = tmp_path / "log.jsonl"
    command("generate", folder, "what is this?", "--max-new-tokens", 2, "--log", log)
    assert json.loads(log.read_text())["policy_version"] == "night"
    ends_with_2(capsys, "no language 'de'", "generate", folder, "hello", "--language", "de")


def test_export_replaces_nothing_unasked(trained, exported, tmp_path, capsys):
    ends_with_2(capsys, "exists already", "export", trained, exported)
    ends_with_2(capsys, "no file safety/config.json", "export", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
