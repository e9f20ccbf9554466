import json
import math

import pytest
import torch

from safety_modules import SafePipeline, SafeVLM, Taxonomy, ask, checkpoint
from safety_modules.calibration import Calibration, CalibrationError, kept_ranks, rows_needed, temperature
from safety_modules.checkpoint import CheckpointError
from safety_modules.export import export
from safety_modules.policy import Policy
from safety_modules.rule import PolicyError

TAXONOMY = Taxonomy.default()
TYPES, LEVELS = len(TAXONOMY.types), len(TAXONOMY.levels)


def rows(count, seed=0, sharpness=1.0):
    """Logits and labels drawn from the logits' own probabilities, then sharpened: the true temperature is `sharpness`."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(count, classes, generator=generator) * 2 for classes in (TYPES, LEVELS)]
    labels = [torch.multinomial(values.softmax(-1), 1, generator=generator).squeeze(1) for values in logits]
    return (*(values * sharpness for values in logits), *labels)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_the_temperature_is_found(sharpness):
    types, _, labels, _ = rows(6000, sharpness=sharpness)
    assert temperature(types, labels) == pytest.approx(sharpness, rel=0.05)


@pytest.mark.parametrize("budget", [0.02, 0.1])
def test_a_budget_holds_on_average_over_draws_of_the_calibration_rows(budget):
    """Split conformal's guarantee: P(score of a new clean row >= threshold) <= budget, and not far below it."""
    fired, shape = [], torch.linspace(-2, 2, TYPES)
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        types = torch.randn(120, TYPES, generator=generator) ** 3 + shape  # heavy tails
        clean = torch.full((120,), TAXONOMY.clean_index)
        calibration = Calibration.fit(types[:100], types[:100, :LEVELS], clean[:100], clean[:100] * 0, TAXONOMY)
        fresh = calibration.assessments(types[100:], types[100:, :LEVELS], TAXONOMY)
        threshold = calibration.threshold("privacy", budget)
        fired += [row.score("privacy") >= threshold for row in fresh]
    rate, error = sum(fired) / len(fired), math.sqrt(budget / len(fired))
    assert budget * 0.7 - 4 * error < rate <= budget + 4 * error


def test_too_few_clean_rows_are_an_error_that_says_how_many_are_needed():
    calibration = Calibration.fit(*rows(400), TAXONOMY)
    with pytest.raises(CalibrationError, match=r"budget of 0.001 for 'privacy' needs 999 clean rows, the calibration has \d+"):
        calibration.threshold("privacy", 0.001)
    assert rows_needed(0.01) == 99 and rows_needed(0.01 / 6) == 599 and rows_needed(0.05) == 19
    for budget in (0.01, 0.05, 0.3):
        exact = Calibration(clean_rows=rows_needed(budget), ranks=(1,), scores={"privacy": (0.5,)})
        assert exact.threshold("privacy", budget) > 0.5
        with pytest.raises(CalibrationError, match="needs"):
            Calibration(clean_rows=rows_needed(budget) - 1, ranks=(1,), scores={"privacy": (0.5,)}).threshold("privacy", budget)


@pytest.mark.parametrize("budget", [0, 1, -0.1, 2])
def test_a_budget_is_a_share(budget):
    with pytest.raises(CalibrationError, match="share of clean exchanges"):
        Calibration.fit(*rows(400), TAXONOMY).threshold("privacy", budget)


def test_rows_without_a_clean_one_are_refused():
    types, levels, _, risk_level = rows(10)
    with pytest.raises(CalibrationError, match="10 rows and no clean one"):
        Calibration.fit(types, levels, torch.zeros(10, dtype=torch.long), risk_level, TAXONOMY)


def test_a_smaller_budget_never_has_a_lower_threshold_and_thinned_ranks_stay_within_it():
    calibration = Calibration.fit(*rows(40000), TAXONOMY)
    found = [calibration.threshold("insults", budget / 1000) for budget in range(1, 500)]
    assert found == sorted(found, reverse=True)
    ranks = kept_ranks(10**6)
    assert ranks[:100] == list(range(1, 101)) and len(ranks) < 1200
    assert all(b / a <= 1.0101 for a, b in zip(ranks[100:], ranks[101:]))


def test_the_ranks_of_scores_do_not_depend_on_the_temperature():
    types, levels, _, _ = rows(200)
    for temperature_ in (0.2, 5.0):
        hot = Calibration(type_temperature=temperature_).assessments(types, levels, TAXONOMY)
        plain = Calibration().assessments(types, levels, TAXONOMY)
        order = [sorted(range(200), key=lambda i, side=side: side[i].score("privacy")) for side in (hot, plain)]
        assert order[0] == order[1]


def test_round_trip_and_another_taxonomy():
    calibration = Calibration.fit(*rows(300), TAXONOMY)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())), TAXONOMY) == calibration
    data = TAXONOMY.to_dict()
    data["types"]["weapons"] = {"level": 3, "hint": "weapons"}
    with pytest.raises(CalibrationError, match="the taxonomy has .*weapons"):
        Calibration.from_dict(calibration.to_dict(), Taxonomy.from_dict(data))
    with pytest.raises(CalibrationError, match="must have the keys"):
        Calibration.from_dict({}, TAXONOMY)
    with pytest.raises(CalibrationError, match="type_temperature: 0 must be a number above 0"):
        Calibration(type_temperature=0)


@pytest.fixture
def folder(model, base, tmp_path):
    """A folder as training leaves it."""
    with checkpoint.fresh_folder(tmp_path / "m") as work:
        checkpoint.save_safety(model, work, str(base))
    return tmp_path / "m"


def test_a_folder_keeps_its_calibration_and_policy_and_export_carries_them(folder, tmp_path):
    calibration = Calibration.fit(*rows(3000), TAXONOMY)
    checkpoint.save_calibration(calibration, folder, {"split": "validation"})
    (tmp_path / "p.yaml").write_text("version: house-7\nbudget: 0.02\n")
    checkpoint.save_policy(tmp_path / "p.yaml", folder)
    for place in (folder, export(folder, tmp_path / "export")):
        pipeline = SafePipeline.from_pretrained(place)
        assert pipeline.calibration == calibration and pipeline.policy.version == "house-7"
        assert pipeline.policy.rules["privacy"].threshold == calibration.threshold("privacy", 0.02 / 6)
        raw = SafePipeline(SafeVLM.from_pretrained(place))
        hot, plain = (side.assess([ask("hello")])[0].types["clean"] for side in (pipeline, raw))
        assert hot != plain


def test_a_calibration_of_other_weights_is_refused_and_not_carried(folder, tmp_path, model):
    checkpoint.save_calibration(Calibration.fit(*rows(3000), TAXONOMY), folder, {})
    with torch.no_grad():
        model.safety.llm_tokens.weight += 1  # no part of a verdict
    with checkpoint.fresh_folder(tmp_path / "later") as work:
        checkpoint.save_safety(model, work, str(folder))
        checkpoint.carry(folder, work)
    assert checkpoint.load_calibration(tmp_path / "later", TAXONOMY).clean_rows
    with torch.no_grad():
        model.safety.head.type_layer.bias += 1
    with checkpoint.fresh_folder(tmp_path / "trained") as work:
        checkpoint.save_safety(model, work, str(folder))
        checkpoint.carry(folder, work)
    assert checkpoint.load_calibration(tmp_path / "trained", TAXONOMY) == Calibration()
    checkpoint.save_safety(model, folder, str(folder))
    with pytest.raises(CheckpointError, match="made for other weights of the head; run scripts.calibrate again"):
        checkpoint.load_calibration(folder, TAXONOMY)


def test_a_budget_without_a_calibration_is_named(folder, tmp_path):
    (tmp_path / "p.yaml").write_text("budget: 0.02\n")
    with pytest.raises(PolicyError, match="p.yaml.*needs a calibration and the checkpoint has none; run scripts.calibrate"):
        SafePipeline.from_pretrained(folder, policy=tmp_path / "p.yaml")
    with pytest.raises(PolicyError, match="needs 59999 clean rows"):
        Policy.from_dict({"budget": 0.0001}, TAXONOMY, Calibration.fit(*rows(500), TAXONOMY))
