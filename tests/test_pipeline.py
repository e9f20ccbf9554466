import json

import pytest
import torch
from helpers import tiny
from helpers.exchanges import OF_ALL_KINDS

from safety_modules import SafePipeline, ask
from safety_modules.checkpoints.export import export
from safety_modules.checkpoints.format import CheckpointError
from safety_modules.checkpoints.load import load
from safety_modules.checkpoints.save import save_safety
from safety_modules.config import ConfigError
from safety_modules.decision.decision_log import JsonLines
from safety_modules.decision.policy import Policy
from safety_modules.evaluation.evaluate import base_pipeline


def policy(model, **default):
    return Policy.from_dict({"default": default}, model.taxonomy)


def test_an_unknown_dtype_or_device_is_named_before_a_model_is_loaded(trained, monkeypatch):
    monkeypatch.setattr("safety_modules.pipeline.load", None)
    for options, message in (
        ({"device": "abacus"}, "device 'abacus'"),
        ({"dtype": "flaot16"}, "did you mean 'float16'"),
    ):
        with pytest.raises(ConfigError, match=message):
            SafePipeline.from_pretrained(trained, **options)


def test_the_vision_tower_runs_once_for_verdict_and_answer(model):
    pipeline = SafePipeline(model, policy(model, threshold=1.0))
    expected = pipeline.answer(OF_ALL_KINDS, [""] * len(OF_ALL_KINDS), 8)
    calls = []
    model.base.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    assert [result.answer for result in pipeline(OF_ALL_KINDS, max_new_tokens=8)] == expected
    assert calls == [1]


def test_a_category_that_is_off_gets_the_bases_answers(trained, base):
    """Unmerged, the action "base" gives the base's tokens, and the next exchange has the adapters again."""
    pipeline = SafePipeline.from_pretrained(trained, merge=False)
    pipeline.policy = policy(pipeline.model, threshold=0.0, enabled=False)
    expected = base_pipeline(base).answer(OF_ALL_KINDS, [""] * len(OF_ALL_KINDS), 8)
    results = pipeline(OF_ALL_KINDS, max_new_tokens=8)
    assert [result.action for result in results] == ["base"] * len(OF_ALL_KINDS)
    assert [result.answer for result in results] == expected
    pipeline.policy = policy(pipeline.model, threshold=1.0)
    tuned = pipeline(OF_ALL_KINDS, max_new_tokens=8)
    assert [result.action for result in tuned] == ["allow"] * len(OF_ALL_KINDS)
    assert [result.answer for result in tuned] != expected
    merged = SafePipeline.from_pretrained(trained)
    assert [r.answer for r in tuned] == merged.answer(OF_ALL_KINDS, [""] * len(OF_ALL_KINDS), 8)


def test_a_policy_can_be_changed_between_calls_and_every_decision_is_logged(model, tmp_path):
    pipeline = SafePipeline(
        model, policy(model, threshold=0.0, actions={"careful": "refuse", "limited": "refuse", "refuse": "refuse"})
    )
    pipeline.log = JsonLines(tmp_path / "log.jsonl")
    first = pipeline(OF_ALL_KINDS, max_new_tokens=2)
    pipeline.policy = Policy.from_dict({"version": "night", "default": {"threshold": 1.0}}, model.taxonomy)
    second = pipeline(OF_ALL_KINDS, max_new_tokens=2)
    assert {result.action for result in first} == {"refuse"} and {result.action for result in second} == {"allow"}
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines] == ["refuse"] * 3 + ["allow"] * 3
    assert [line["policy_version"] for line in lines] == [1] * 3 + ["night"] * 3
    assert lines[0]["policy_digest"] != lines[3]["policy_digest"]
    assert lines[0]["types"] == first[0].assessment.types and lines[0]["threshold"] == 0.0 and lines[0]["score"] > 0
    assert "question" not in lines[0] and "what is this" not in (tmp_path / "log.jsonl").read_text()


def test_refusals_in_the_asked_language(model):
    always = {"threshold": 0.0, "actions": {"careful": "refuse", "limited": "refuse", "refuse": "refuse"}}
    pipeline = SafePipeline(
        model, Policy.from_dict({"default": always, "languages": {"de": {"refusal": "Nein."}}}, model.taxonomy)
    )
    assert pipeline([ask("hello")], language="de")[0].answer == "Nein."


def test_no_safety_tokens_in_the_bases_prompt(model):
    row = model.processor.encode(ask("what is this?", [tiny.image(1)]), safety_tokens=False)
    assert not set(row["input_ids"].tolist()) & set(model.processor.safety_ids)
    full = model.processor.encode(ask("what is this?", [tiny.image(1)]))
    kept = [i for i in full["input_ids"].tolist() if i not in model.processor.safety_ids]
    assert row["input_ids"].tolist() == kept and len(row["question_mask"]) == len(kept)


def test_a_head_without_its_language_model_assesses_and_decides(trained, tmp_path):
    whole = SafePipeline.from_pretrained(export(trained, tmp_path / "export"))
    alone = load(tmp_path / "export", language_model=False)
    exchange = ask("what is it?", [tiny.image(0)])
    assert SafePipeline(alone, whole.policy, whole.calibration).decide([exchange]) == whole.decide([exchange])
    with pytest.raises(CheckpointError, match="its adapter changes .*vision_tower.* export the folder first"):
        load(trained, language_model=False)  # these layers are in the tower as well


@pytest.mark.parametrize(
    "dtype,expected", [("auto", torch.bfloat16), ("float16", torch.float16), (torch.float32, torch.float32)]
)
def test_auto_is_the_stored_dtype_but_never_half_precision_on_a_cpu(model, tmp_path, monkeypatch, dtype, expected):
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    model.base.half().save_pretrained(tmp_path / "half")
    model.processor.save_pretrained(tmp_path / "half")
    save_safety(model, tmp_path / "trained", base=str(tmp_path / "half"))  # apart from its base
    pipeline = SafePipeline.from_pretrained(tmp_path / "trained", dtype=dtype)
    assert pipeline.model.device == torch.device("cpu") and pipeline.model.base.dtype == expected
    assert pipeline.assess([ask("hello")])
