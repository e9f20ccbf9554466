"""Real files: needs the folder named by SAFETY_MODULES_DATA, with figstep/, xstest/ and benign/."""

import json
import os
from pathlib import Path

import pytest

import data_recipes
from data_recipes.__main__ import main as data_main
from data_recipes.inspection import image_scan
from safety_modules.cli.main import main
from safety_modules.taxonomy import Taxonomy
from scripts import sample_dataset
from train.run import main as train_main

DATA = os.environ.get("SAFETY_MODULES_DATA")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not DATA, reason="SAFETY_MODULES_DATA is not set")]
CONFIG = Path(__file__).parents[1] / "train" / "configs" / "demo_custom.yaml"


def test_figstep_as_custom_data_trains_exports_and_moderates(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    sample_dataset.main([f"{DATA}/figstep/images", f"{DATA}/benign", str(data)])
    own = ["--data.root", str(data), "--taxonomy", str(data / "taxonomy.yaml"), "--output", str(run)]
    train_main(["--config", str(CONFIG), *own, "--trainer.report_to", "none"])
    main(["export", str(run / "final"), str(run / "export")])
    main(["moderate", str(run / "export"), str(data / "held_out"), "--output", str(run / "verdicts.jsonl")])
    rows = [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]
    audited = ["--data", f"{DATA}/benign", "--output", str(run / "audit"), "--device", "cpu"]
    main(["audit", "--model", str(run / "export"), *audited])
    assert len((run / "audit/kept.txt").read_text().splitlines()) == 5, "all photographs are kept"
    right = {
        kind: [row["fired"] == kind for row in rows if f"/{kind}/" in row["image"]]
        for kind in ("forbidden_text", "clean")
    }
    assert len(right["forbidden_text"]) == 50 and len(right["clean"]) == 50
    assert all(sum(flags) / len(flags) >= 0.9 for flags in right.values()), right


def test_figsteps_files_are_read_end_to_end(tmp_path):
    rows = data_recipes.load("figstep", f"{DATA}/figstep", "all", Taxonomy.default())
    assert len(rows) == 250 and rows.counts()["illegal", 3] == 125 and rows.counts()["misleading", 2] == 75
    code = data_main(["inspect", "figstep", "--root", f"{DATA}/figstep", "--output", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == 0 and report["images"] == 250 and report["formats"] == {"PNG RGB": 250} and report["alike"] == []


def test_xstests_file_is_read_end_to_end(tmp_path):
    rows = data_recipes.load("xstest", f"{DATA}/xstest", "all", Taxonomy.default())
    assert len(rows) == 450 and rows.counts() == {
        ("clean", 0): 250,
        ("illegal", 3): 150,
        ("fairness", 2): 25,
        ("privacy", 2): 25,
    }
    assert (
        data_main(["inspect", "xstest", "--root", f"{DATA}/xstest", "--split", "all", "--output", str(tmp_path)]) == 0
    )


def test_photographs_are_read_as_a_folder_of_clean_images(tmp_path):
    (tmp_path / "public").symlink_to(f"{DATA}/benign")
    with pytest.raises(data_recipes.DataError, match="leaves"):
        data_recipes.load("image_folder", tmp_path, "train+validation", Taxonomy.default())
    scans = [image_scan.scan_image(path, "row") for path in sorted(Path(DATA, "benign").glob("*.jpg"))]
    assert len(scans) == 5 and all(scan.fingerprint and scan.format == "JPEG" for scan in scans)
    assert not image_scan.near_duplicates(scans)
