import json
import random

import pytest
from PIL import Image

from data_recipes import riskworld
from safety_modules import Taxonomy
from safety_modules.errors import UserError
from safety_modules.reporting.report import render
from scripts import ablate as ablate_script
from train.data.injections import added
from train.experiments import ablations, control, control_measure, harness

SIZES = {"train": 60, "validation": 4, "test": 4}


@pytest.fixture
def calls(monkeypatch):
    """Instead of a training: note that there was one, and leave a checkpoint and a result."""
    seen = []

    def fake(config):
        seen.append(config)
        for name in ("checkpoint-5", "final"):
            (harness.Path(config["output"]) / name).mkdir(parents=True, exist_ok=True)
        if config.get("fails"):
            raise KeyboardInterrupt
        return harness.Path(config["output"]) / "final"

    monkeypatch.setattr(harness, "train", fake)
    return seen


def run(monkeypatch, output, *overrides, fails=False):
    monkeypatch.setattr(harness, "read_config", lambda args: {"output": str(output), "fails": fails})
    return harness.stage("control_head_only.yaml", output, *overrides)


def test_a_stage_is_trained_once_and_again_when_anything_changes(calls, monkeypatch, tmp_path):
    table = tmp_path / "rows.jsonl"
    table.write_text("a")
    first = run(monkeypatch, tmp_path / "s", "--data.root", str(table))
    assert run(monkeypatch, tmp_path / "s", "--data.root", str(table)) == first and len(calls) == 1
    assert not list((tmp_path / "s").glob("checkpoint-*"))
    run(monkeypatch, tmp_path / "s", "--data.root", str(table), "--trainer.seed", "1")
    assert len(calls) == 2
    table.write_text("b")  # a file that the stage reads
    run(monkeypatch, tmp_path / "s", "--data.root", str(table), "--trainer.seed", "1")
    assert len(calls) == 3


def test_a_stage_that_was_cut_off_keeps_its_checkpoints_and_another_one_does_not(calls, monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path / "s", fails=True)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path / "s", fails=True)
    assert (tmp_path / "s" / "checkpoint-5").exists()
    (tmp_path / "s" / "checkpoint-5" / "mine").write_text("x")
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path / "s", fails=True)
    assert (tmp_path / "s" / "checkpoint-5" / "mine").exists()
    run(monkeypatch, tmp_path / "s", "--trainer.seed", "1")
    assert not (tmp_path / "s" / "checkpoint-5").exists()


def test_summary_is_the_mean_over_seeds():
    made = harness.summary([{"a": {"value": 0.1, "n": 10}}, {"a": {"value": 0.3, "n": 12}, "b": {"value": 1, "n": 1}}])
    assert made["a"] == {"mean": 0.2, "spread": pytest.approx(0.14142), "seeds": 2, "n": 22}
    assert made["b"] == {"mean": 1.0, "spread": 0.0, "seeds": 1, "n": 1}


def test_a_chosen_share_of_clean_rows(tmp_path):
    root = harness.world(tmp_path, 0, SIZES)
    for share in (10, 90):
        ablations._share(root, share, 20)
        rows = [json.loads(line) for line in (root / f"clean_{share}.jsonl").read_text().splitlines()]
        assert len(rows) == 20 and sum(row["risk_type"] == "clean" for row in rows) == 20 * share // 100


def test_the_rows_of_a_new_category_leave_the_world_as_it_is(tmp_path):
    root = harness.world(tmp_path, 0, {"train": 400, "validation": 4, "test": 4})
    before = (root / "train.jsonl").read_bytes()
    control_measure._write_rows(root)
    rows = [json.loads(line) for line in (root / "new.jsonl").read_text().splitlines()]
    new = [row for row in rows if row["risk_type"] == control_measure.NEW_TYPE]
    assert new and all(row["risk_level"] == 1 for row in new) and (root / "train.jsonl").read_bytes() == before
    names = {row["name"] for row in riskworld.records(root, "train") if row["image"] in {r["image"] for r in new}}
    assert names <= set(control_measure.NEW)
    assert Image.open(root / new[0]["image"])


def test_every_row_of_the_ablation_has_what_it_names():
    for row in ablations.ROWS:
        known = {*ablations.HEADS, *(f"clean_{share}" for share in ablations.SHARES), "co_trained", None}
        assert row.head in known and row.language in {*ablations.LANGUAGES, *known, "base"}
    assert (
        len({(row.head, row.language) for row in ablations.ROWS})
        == len({row.title for row in ablations.ROWS})
        == len(ablations.ROWS)
    )


def test_the_table_stands_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "run", lambda *_: None)
    for seed, value in ((0, 0.1), (1, 0.3)):
        path = tmp_path / f"seed-{seed}" / "rows" / "default-default.json"
        path.parent.mkdir(parents=True)
        row = {"row": ablations.ROWS[0].title, "seed": seed, "unsafe_alone": value, "seconds": 10.0}
        path.write_text(json.dumps(row))
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{harness.BEGIN}old{harness.END}\nAfter.\n")
    ablate_script.main(["--output", str(tmp_path), "--docs", str(page)])
    text = page.read_text()
    assert "20.0 ± 14.1" in text and "| 10 |" in text and "old" not in text
    assert text.startswith("Before.") and text.endswith("After.\n")
    page.write_text("Nothing.")
    with pytest.raises(UserError, match="has no place for the table"):
        harness.write_table(page, "x")
    assert [row["seed"] for row in json.loads((tmp_path / "results.json").read_text())] == [0, 1]


def test_forged_text_is_put_before_or_behind():
    texts = {added(random.Random(i), "what is it?", Taxonomy.default()) for i in range(50)}
    assert len(texts) > 40 and all("what is it?" in text and text != "what is it?" for text in texts)
    assert {text.startswith("what is it?") for text in texts} == {True, False}


def test_control_collects_seeds_a_gain_in_accuracy_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "_reliability", lambda *_: {})
    for seed, value in ((0, -0.01), (1, 0.005)):
        numbers = {target.key: {"value": 0.5, "n": 10} for target in control.TARGETS}
        numbers |= {"clean_accuracy_delta": {"value": value, "n": 10}, "forged_alarm": {"value": 0.0, "n": 3}}
        harness.write_text(tmp_path / f"seed-{seed}" / "metrics.json", json.dumps(numbers))
    page, table = control.collect(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["clean_accuracy_delta"] == {"mean": -0.0025, "spread": 0.01061, "seeds": 2, "n": 20}
    assert "| clean_accuracy_delta | -0.0025 | 0.0106 | 2 | 20 | ≤ 0.005 |" in table and "| forged_alarm |" in table
    assert list(page.metrics) == ["seed 0", "seed 1", "mean"] and "Riskworld: control" in render(page)
