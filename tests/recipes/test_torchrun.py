"""`train.run` under torchrun: two gloo processes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny

from safety_modules.checkpoints.load import load

ROOT = Path(__file__).parents[2]


@pytest.mark.recipe
@pytest.mark.parametrize("head_only", [False, True])
def test_torchrun_trains_on_two_processes(bases, tmp_path, head_only):
    """Rows with an image, several and none, and one result."""
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
        "safety": vars(tiny.safety_config()),
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
    shards = list((tmp_path / "features").glob("*/*.safetensors"))
    assert len(shards) == (2 if head_only else 0)  # each process wrote one
