"""Real pictures: needs the folder named by SAFETY_MODULES_DATA, with figstep/images and benign/."""

import json
import os
from pathlib import Path

import pytest

from scripts import export, moderate, trial
from train.run import main as train_main

DATA = os.environ.get("SAFETY_MODULES_DATA")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not DATA, reason="SAFETY_MODULES_DATA is not set")]
CONFIG = Path(__file__).parents[1] / "train" / "configs" / "demo_custom.yaml"


def test_figstep_as_custom_data_trains_exports_and_moderates(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    trial.main([f"{DATA}/figstep/images", f"{DATA}/benign", str(data)])
    own = ["--data.root", str(data), "--taxonomy", str(data / "taxonomy.yaml"), "--output", str(run)]
    train_main(["--config", str(CONFIG), *own, "--trainer.report_to", "none"])
    export.main([str(run / "final"), str(run / "export")])
    moderate.main([str(run / "export"), str(data / "held_out"), "--output", str(run / "verdicts.jsonl")])
    rows = [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]
    right = {kind: [row["fired"] == kind for row in rows if f"/{kind}/" in row["image"]] for kind in ("forbidden_text", "clean")}
    assert len(right["forbidden_text"]) == 50 and len(right["clean"]) == 50
    assert all(sum(flags) / len(flags) >= 0.9 for flags in right.values()), right
