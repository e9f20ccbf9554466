import json
import math

import pytest
import torch
from scipy.stats import binom

from safety_modules import SafePipeline, Taxonomy, ask
from safety_modules.checkpoints.control_files import copy_control, load_calibration, save_calibration, save_policy
from safety_modules.checkpoints.export import export
from safety_modules.checkpoints.format import CheckpointError
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.save import save_safety
from safety_modules.decision.calibration import (
    ANY,
    CONFIDENCE,
    Calibration,
    CalibrationError,
    fit_temperature,
    rank_for,
    rows_needed,
    stored_ranks,
)
from safety_modules.decision.policy import Policy
from safety_modules.decision.policy_rule import PolicyError
from safety_modules.files import fresh_folder

TAXONOMY = Taxonomy.default()
TYPES, LEVELS = len(TAXONOMY.types), len(TAXONOMY.levels)


def rows(count, seed=0, sharpness=1.0):
    """Logits, sharpened, and labels drawn from their own probabilities: the true temperature is `sharpness`."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(count, classes, generator=generator) * 2 for classes in (TYPES, LEVELS)]
    labels = [torch.multinomial(values.softmax(-1), 1, generator=generator).squeeze(1) for values in logits]
    return (*(values * sharpness for values in logits), *labels)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_the_true_temperature_is_fitted(sharpness):
    types, _, labels, _ = rows(6000, sharpness=sharpness)
    assert fit_temperature(types, labels) == pytest.approx(sharpness, rel=0.05)


@pytest.mark.parametrize("budget", [0.05, 0.2])
@pytest.mark.parametrize("name", ["privacy", ANY])
def test_a_budget_holds_with_the_stated_confidence(budget, name):
    """Over 200 draws of 60 calibration rows, the true rate keeps the budget in nine of ten, and is not far below."""

    def scores(count, seed):
        types = torch.randn(count, TYPES, generator=torch.Generator().manual_seed(seed)) ** 3 + torch.linspace(
            -2, 2, TYPES
        )
        judged = Calibration().assessments(types, types[:, :LEVELS], TAXONOMY)
        return types, [max(map(row.score, TAXONOMY.risky_names)) if name == ANY else row.score(name) for row in judged]

    _, traffic = scores(20000, 10**6)
    rates = []
    for seed in range(200):
        types, _ = scores(60, seed)
        clean = torch.full((60,), TAXONOMY.clean_index)
        fitted = Calibration.fit(types, types[:, :LEVELS], clean, clean * 0, TAXONOMY)
        threshold = Calibration(1.0, 1.0, fitted.clean_rows, fitted.ranks, plain(fitted)).threshold(name, budget)
        rates.append(sum(score >= threshold for score in traffic) / len(traffic))
    assert sum(rate <= budget for rate in rates) >= 0.9 * 200 - 3 * (200 * 0.09) ** 0.5
    assert sum(rates) / len(rates) > 0.25 * budget


def plain(calibration):
    """The scores as they are at temperature 1."""
    odds = {
        name: [math.log(s / (1 - s)) * calibration.type_temperature for s in row]
        for name, row in calibration.scores.items()
    }
    return {name: tuple(1 / (1 + math.exp(-value)) for value in row) for name, row in odds.items()}


@pytest.mark.parametrize(
    "rows_,budget", [(500, 0.01), (4000, 0.003), (60, 0.2), (100, 0.9), (1, 0.9), (30, 0.999), (20, 0.01), (0, 0.5)]
)
def test_fewer_than_rank_clean_rows_exceed_the_budget_in_at_most_one_of_ten_draws(rows_, budget):
    k = rank_for(budget, rows_)
    assert k == 0 or binom.cdf(k - 1, rows_, budget) <= 1 - CONFIDENCE + 1e-12
    assert k == rows_ or binom.cdf(k, rows_, budget) > 1 - CONFIDENCE


def test_a_score_that_equals_the_limit_does_not_pass():
    calibration = Calibration(clean_rows=100, ranks=tuple(range(1, 101)), scores={"privacy": (0.5,) * 100})
    assert 0.5 < calibration.threshold("privacy", 0.1) < 0.5000001


def test_each_output_has_its_own_temperature():
    types, levels, _, _ = rows(1)
    hot = Calibration(type_temperature=2.0, level_temperature=0.5).assessments(types, levels, TAXONOMY)[0]
    assert list(hot.types.values()) == pytest.approx((types[0] / 2.0).softmax(-1).tolist(), abs=1e-6)
    assert list(hot.levels) == pytest.approx((levels[0] / 0.5).softmax(-1).tolist(), abs=1e-6)


def test_too_few_clean_rows_are_an_error_that_says_how_many_are_needed():
    calibration = Calibration.fit(*rows(400), TAXONOMY)
    with pytest.raises(CalibrationError, match=r"budget of 0.001 needs 2302 clean rows, the calibration has \d+"):
        calibration.threshold("privacy", 0.001)
    for budget in (0.01, 0.05, 0.3):
        assert rank_for(budget, rows_needed(budget)) == 1 and rank_for(budget, rows_needed(budget) - 1) == 0


@pytest.mark.parametrize("budget", [0, 1, -0.1, 2])
def test_a_budget_is_a_fraction(budget):
    with pytest.raises(CalibrationError, match="fraction of clean exchanges"):
        Calibration.fit(*rows(400), TAXONOMY).threshold("privacy", budget)


def test_rows_without_a_clean_one_are_an_error():
    types, levels, _, risk_level = rows(10)
    with pytest.raises(CalibrationError, match="10 rows and no clean one"):
        Calibration.fit(types, levels, torch.zeros(10, dtype=torch.long), risk_level, TAXONOMY)


def test_a_smaller_budget_never_has_a_lower_threshold_and_thinned_ranks_stay_within_it():
    calibration = Calibration.fit(*rows(40000), TAXONOMY)
    thresholds = [calibration.threshold("insults", budget / 1000) for budget in range(1, 500)]
    assert thresholds == sorted(thresholds, reverse=True)
    ranks = stored_ranks(10**6)
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
    with fresh_folder(tmp_path / "m") as work:
        save_safety(model, work, str(base))
    return tmp_path / "m"


def test_a_folder_keeps_its_calibration_and_policy_and_export_carries_them(folder, tmp_path):
    calibration = Calibration.fit(*rows(3000), TAXONOMY)
    save_calibration(calibration, folder, {"split": "validation"})
    (tmp_path / "p.yaml").write_text("version: house-7\nbudget: 0.02\n")
    save_policy(tmp_path / "p.yaml", folder)
    for place in (folder, export(folder, tmp_path / "export")):
        pipeline = SafePipeline.from_pretrained(place)
        assert pipeline.calibration == calibration and pipeline.policy.version == "house-7"
        assert pipeline.policy.rules["privacy"].threshold == calibration.threshold(ANY, 0.02)
        raw = SafePipeline(load(place))
        hot, plain = (side.assess([ask("hello")])[0].types["clean"] for side in (pipeline, raw))
        assert hot != plain


def test_a_calibration_of_other_weights_is_refused_and_not_carried(folder, tmp_path, model):
    save_calibration(Calibration.fit(*rows(3000), TAXONOMY), folder, {})
    with torch.no_grad():
        model.safety.llm_tokens.weight += 1  # a verdict does not depend on them
    with fresh_folder(tmp_path / "later") as work:
        save_safety(model, work, str(folder))
        copy_control(folder, work)
    assert load_calibration(tmp_path / "later", TAXONOMY).clean_rows
    with torch.no_grad():
        model.safety.head.type_layer.bias += 1
    with fresh_folder(tmp_path / "trained") as work:
        save_safety(model, work, str(folder))
        copy_control(folder, work)
    assert load_calibration(tmp_path / "trained", TAXONOMY) == Calibration()
    save_safety(model, folder, str(folder))
    with pytest.raises(
        CheckpointError, match="belongs to other weights of the head; run `safety-modules calibrate` again"
    ):
        load_calibration(folder, TAXONOMY)


def test_a_budget_without_a_calibration_is_named(folder, tmp_path):
    (tmp_path / "p.yaml").write_text("budget: 0.02\n")
    with pytest.raises(
        PolicyError, match="p.yaml.*needs a calibration and the checkpoint has none; run `safety-modules calibrate`"
    ):
        SafePipeline.from_pretrained(folder, policy=tmp_path / "p.yaml")
    with pytest.raises(PolicyError, match="budget of 0.0001 needs 23025 clean rows"):
        Policy.from_dict({"budget": 0.0001}, TAXONOMY, Calibration.fit(*rows(500), TAXONOMY))
