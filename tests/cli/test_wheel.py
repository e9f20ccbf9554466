"""The installed project: the wheel alone, with its declared requirements, runs every command."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from helpers import tiny
from helpers.house import ROOT, tracked

from safety_modules import SafeVLM
from safety_modules.checkpoints.save import save_safety
from safety_modules.cli.main import COMMANDS

INSTALLED = ("safety_modules", "data_recipes")
ETA = "pre: {kind: head}\npost: {kind: head}\nsearch: {prefix: I cannot, candidates: 2, max_new_tokens: 8}\n"


def run(*command, **options):
    """A process that sees nothing of this checkout and this environment."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    process = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, **options)
    assert process.returncode == 0, f"{command}: {process.stderr[-3000:]}"
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the project's own files, so that nothing else gets in."""
    home = tmp_path_factory.mktemp("wheel")
    for path in tracked():
        if path.relative_to(ROOT).parts[0] in (*INSTALLED, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
            target = home / "source" / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", home, home / "source", cwd=home, timeout=120)
    return next(home.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The bin folder of an empty environment with the wheel and its declared requirements; torch is a CPU build."""
    home, version = tmp_path_factory.mktemp("environment"), torch.__version__.split("+")[0]
    run(sys.executable, "-m", "venv", home)
    (home / "constraints.txt").write_text(f"torch=={version}\n")
    run("sh", ROOT / "scripts" / "torch.sh", home / "bin", version, cwd=home, timeout=200)
    install = [home / "bin" / "python", "-m", "pip", "install", "-q", "-c", home / "constraints.txt"]
    run(*install, wheel, cwd=home, timeout=300)
    return home / "bin"


def data_folder(folder):
    """Ninety rows for the recipe `custom`, two thirds of them clean."""
    folder.mkdir()
    lines = ["image,question,answer,risk_type"]
    for i in range(90):
        tiny.image(i).save(folder / f"{i}.png")
        lines.append(f"{i}.png,what is it?,a red key,{'clean' if i % 3 else 'privacy'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.recipe
def test_contract_16_the_wheel_alone_runs_every_command(wheel, programs, bases, tmp_path):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [path.relative_to(ROOT) for path in tracked() if path.relative_to(ROOT).parts[0] in INSTALLED]
    assert [path for path in files if path.as_posix() not in packed] == []
    own = (*INSTALLED, f"{wheel.name.split('-py3')[0]}.dist-info")
    assert [name for name in packed if name.split("/")[0] not in own] == []

    trained = tmp_path / "trained"
    save_safety(SafeVLM.attach(bases["llava"], tiny.safety_config()), trained, str(bases["llava"]))
    data, empty = data_folder(tmp_path / "data"), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "eta.yaml").write_text(ETA)
    rows, budget = ["--recipe", "custom", "--root", data, "--split", "all"], ["--budget", 0.1]
    eta, short = ["--eta", tmp_path / "eta.yaml"], ["--max-new-tokens", 4]
    calls = {
        "export": [trained, "export"],
        "moderate": ["export", data, "--output", "verdicts.jsonl"],
        "calibrate": ["export", *rows, *budget, "--report", "calibration.html"],
        "generate": ["export", "what is it?", "--image", data / "0.png", *eta, *short],
        "evaluate": ["export", *rows, "--output", "metrics.json", *short],
        "audit": ["--data", data, "--model", "export", "--output", "audit"],
        "extend": ["export", "extended", "--taxonomy", "export/safety/taxonomy.yaml"],
        "thresholds": [*rows, *eta, *budget, "--model", "export", "--output", "eta.json"],
    }
    assert set(calls) == set(COMMANDS)
    for name, args in calls.items():
        run(programs / "safety-modules", name, *args, cwd=empty, timeout=120)
    assert len((empty / "verdicts.jsonl").read_text().splitlines()) == 90
    assert json.loads((empty / "metrics.json").read_text())["over_refusal_rate_n"] == 60
    assert "<img" in (empty / "audit" / "gallery.html").read_text() and (empty / "calibration.html").stat().st_size
    assert "riskworld" in run(programs / "python", "-m", "data_recipes", "list", cwd=empty)
