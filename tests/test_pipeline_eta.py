"""A pipeline with ETA: the policy decides, the head or ETA evaluates, and a stream gives what the call gives."""

import pytest
from helpers import tiny
from helpers.tiny_evaluators import PrefixPost, eta_folders

from safety_modules.decision.policy import Policy
from safety_modules.eta import Eta, EtaSettings
from safety_modules.eta.evaluators.head import HeadRisk
from safety_modules.pipeline import SafePipeline
from safety_modules.prompt.messages import ask


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bases):
    return eta_folders(tmp_path_factory.mktemp("eta"), bases["llava"])


def test_the_head_decides_what_is_evaluated(folders):
    pipeline = SafePipeline.from_pretrained(folders / "safe")
    exchanges = [ask(f"what is it? {i}", [tiny.image(i)]) for i in range(4)]
    risks = [assessment.risk for assessment in pipeline.assess(exchanges)]
    plain, middle = pipeline(exchanges, 12), sorted(risks)[2]
    settings = EtaSettings("I cannot", 2, max_new_tokens=99, sentence_tokens=4)
    pipeline.eta = Eta(PrefixPost(), HeadRisk(middle), settings=settings)
    results = pipeline(exchanges, 12)
    for risk, before, now in zip(risks, plain, results):
        assert now.eta.pre == risk and now.action == before.action
        assert now.eta.stage == ("aligned" if risk >= middle else "plain")
        assert now.answer.startswith("I cannot") if risk >= middle else now.answer == before.answer
        assert now.to_dict()["eta"]["stage"] == now.eta.stage and "answer" not in now.to_dict()["eta"]


def test_the_evaluators_read_the_hint_and_the_answer_is_the_policys_refusal(folders):
    pipeline = SafePipeline.from_pretrained(folders / "safe")
    taxonomy = pipeline.model.taxonomy
    pipeline.policy = Policy.from_dict({"default": {"threshold": 0.0}, "refusal": "No: {hint}."}, taxonomy)
    post = PrefixPost()
    pipeline.eta = Eta(post, settings=EtaSettings("Well", 2, max_new_tokens=99, sentence_tokens=4))
    (result,) = pipeline([ask("what is it?", [tiny.image(0)])], 12)
    assert result.action == "hint" and result.eta.stage == "refused"
    assert result.answer == pipeline.policy.refusal(result.decision) and result.answer.startswith("No: ")
    assert all(read[0] == {"role": "system", "content": result.decision.hint} for read in post.read)


def test_what_the_policy_refuses_or_leaves_to_the_base_is_not_searched(folders):
    pipeline = SafePipeline.from_pretrained(folders / "safe")
    taxonomy = pipeline.model.taxonomy
    for rule in (
        {"threshold": 0.0, "actions": {name: "refuse" for name in taxonomy.level_names[1:]}},
        {"threshold": 0.0, "enabled": False},
    ):
        pipeline.policy = Policy.from_dict({"default": rule}, taxonomy)
        pipeline.eta = Eta(PrefixPost(), settings=EtaSettings(max_new_tokens=99))
        (result,) = pipeline([ask("what is it?", [tiny.image(0)])], 12)
        assert result.action in ("refuse", "base") and result.eta is None and pipeline.eta.post.read == []


@pytest.mark.parametrize(
    "rule", [{"threshold": 1.0}, {"threshold": 0.0}, {"threshold": 0.0, "actions": "refuse"}, {"enabled": False}]
)
def test_a_stream_gives_what_the_call_gives(folders, rule):
    pipeline = SafePipeline.from_pretrained(folders / "safe")
    taxonomy, exchange = pipeline.model.taxonomy, ask("what is it?", [tiny.image(0)])
    if "actions" in rule:
        rule = {**rule, "actions": {name: "refuse" for name in taxonomy.level_names[1:]}}
    pipeline.policy = Policy.from_dict({"default": {"threshold": 0.0, **rule}}, taxonomy)
    for eta in (None, Eta(PrefixPost(), settings=EtaSettings("I cannot", 2, max_new_tokens=99, sentence_tokens=4))):
        pipeline.eta, results = eta, []
        (whole,) = pipeline([exchange], 12)
        assert "".join(pipeline.stream(exchange, 12, done=results.append)) == whole.answer == results[0].answer
        assert results[0].action == whole.action
        assert (results[0].eta and results[0].eta.stage) == (whole.eta and whole.eta.stage)
