"""Whole runs of `train.run` for tests: data, configuration, processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import tiny

from train.arguments import training_arguments
from train.build import build_data, build_model, build_trainer
from train.config import TrainConfig
from train.loop.trainer import SafetyTrainer

ROOT = Path(__file__).resolve().parents[2]
STAGE1 = {r"safety\..*": 1e-2, r"base\..*": None}
LORA = {r"base\..*lora_.*": 1e-2, r"base\..*": None, r"safety\.llm_tokens\..*": 3e-2, r"safety\..*": None}


def table(root: Path, rows: int = 22, text: int = 4) -> Path:
    """Rows with one, two and three images and, one in `text`, none: with answers of different lengths."""
    root.mkdir()
    lines = ["image,question,answer,risk_type"]
    for i in range(8):
        tiny.image(i).save(root / f"{i}.png")
    for i in range(rows):
        images = "|".join(f"{(i + k) % 8}.png" for k in range(i % 3 + 1)) if i % text else ""
        lines.append(
            f"{images},what is it{'?' * (i % 5)},{'a red key ' * (i % 4 + 1)},{'privacy' if i % 2 else 'clean'}"
        )
    (root / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def config(root: Path, output: Path, rules: dict, base: Path, lora: dict | None = None, **trainer: object) -> Path:
    """A stage's file.

    Args: base: or a folder of trained modules. trainer: on top of eight steps of four rows, logged one by one.
    """
    start = (
        {"modules": str(base)}
        if (base / "safety").is_dir()
        else {"base": str(base), "safety": vars(tiny.safety_config())}
    )
    values = {
        **start,
        "output": str(output),
        "data": {"root": str(root), "train": [{"recipe": "custom"}]},
        "rules": rules,
        "trainer": {
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "lr_scheduler_type": "linear",
            **trainer,
        },
    }
    if lora:
        values["lora"] = lora
    output.mkdir(parents=True, exist_ok=True)
    path = output / "stage.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def trainer_of(config: TrainConfig) -> SafetyTrainer:
    """The trainer of a stage, as `train.run` builds it."""
    arguments = training_arguments(config)
    model = build_model(config, arguments)
    return build_trainer(config, arguments, model, build_data(config, arguments, model))


def command(*args: object, processes: int = 1) -> list[str]:
    """The command line of a run: plain for one process, torchrun's for more."""
    run = [sys.executable]
    if processes > 1:
        run += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*run, str(ROOT / "tests" / "recipes" / "launch.py"), *map(str, args)]


def environment(**more: str) -> dict[str, str]:
    """One thread in each process; the checkout in the path."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TRANSFORMERS_VERBOSITY": "error", **more}


def run(*args: object, processes: int = 1, rc: int = 0, **more: str) -> str:
    """Run to the end; the exit code must be `rc`. Returns what it printed."""
    done = subprocess.run(
        command(*args, processes=processes),
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == rc, f"{done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def losses(output: Path) -> list[dict]:
    """Step, loss and its terms, of each step."""
    history = json.loads((output / "history.json").read_text(encoding="utf-8"))
    return [{name: row[name] for name in ("step", "loss", "lm", "type", "level")} for row in history if "loss" in row]
