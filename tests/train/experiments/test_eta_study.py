"""What the ETA run measures: the sequential search, the numbers of a system, the table."""

import pytest
from helpers import tiny

from safety_modules import Policy, SafePipeline, SafeVLM
from safety_modules.eta import REWARD, Eta, EtaResult, EtaSettings, StockGenerator
from safety_modules.evaluation import evaluate
from safety_modules.sample import Sample, Turn
from train.benchmarks import timing
from train.experiments import eta_speed, eta_study
from train.experiments.eta_systems import SETTINGS, SYSTEMS, ComparedSystem, SystemRun


class CharacterReward:
    """A reward by the characters of the text."""

    unit, threshold = REWARD, 0.0

    def __call__(self, exchanges, texts):
        return [sum(map(ord, text)) % 97 / 97 for text in texts]


def exchanges(count=3):
    return [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": tiny.image(i)}, {"type": "text", "text": "what? " * (i + 1)}],
            }
        ]
        for i in range(count)
    ]


@pytest.mark.parametrize("share_cache", [True, False])
def test_the_sequential_search_gives_the_tokens_of_the_batched_one(bases, share_cache):
    settings = EtaSettings("I cannot", 3, max_new_tokens=14, sentence_tokens=4, batch_size=2, share_cache=share_cache)
    generator, eta = StockGenerator.from_pretrained(bases["llava"]), Eta(CharacterReward(), settings=settings)
    speed = eta_speed.search_speed(generator, eta, exchanges(), exchanges(), repeats=1)
    assert speed["same_tokens"] == 1.0 and speed["exchanges"] == 3
    assert speed["best_of_n_speedup"] == pytest.approx(speed["seconds_one_by_one"] / speed["seconds_search"])


def test_the_sequential_search_ends_where_a_score_is_missing(bases):
    search = eta_speed.SequentialSearch(
        StockGenerator.from_pretrained(bases["llava"]),
        EtaSettings(max_new_tokens=14),
        lambda numbers, texts: [float("nan")] * len(texts),
        None,
    )
    (path,) = search(exchanges(1), [0])
    assert path.end == "failed" and path.sentences == []


def test_what_benign_traffic_pays_is_split_by_phase(monkeypatch):
    ticks = iter([0.0, 10.0, 10.0, 11.0, 11.0, 24.0])  # plain 10 s, assess 1 s, with ETA 13 s
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    results = [
        EtaResult("a", "plain", seconds={"plain": 5.0}),
        EtaResult("b", "evaluated", seconds={"plain": 5.0, "post": 2.0}),
    ]
    cost = eta_speed.benign_cost(lambda: ["a", "b"], lambda: None, lambda: results, repeats=1)
    assert cost == {
        "benign_overhead": pytest.approx(0.3),
        "benign_evaluation": pytest.approx(0.3),
        "benign_search": 0.0,
        "seconds_plain": 5.0,
        "exchanges": 2,
    }


def row(level, question="what is it?", clean=False):
    turns = (Turn("user", question), Turn("assistant", "it is a key"))
    return Sample((), turns, "privacy" if level else "clean", level, "row"), {"clean": clean}


SPLITS = {"": [row(3), row(3), row(1), row(0, clean=True), row(0)], "_ood": [row(2)]}


def run_of(answers, seconds, stages=None):
    stages = stages or ["plain"] * len(answers)
    return SystemRun([EtaResult(text, stage, final=-1.0) for text, stage in zip(answers, stages)], seconds)


def test_the_numbers_of_a_system():
    base = {"": run_of(["yes", "i cannot", "red", "it is a key", "blue"], 2.0), "_ood": run_of(["yes"], 1.0)}
    stages = ["aligned", "evaluated", "refused", "plain", "plain"]
    system = {
        "": run_of(["i cannot", "yes", "red", "it is a key", "i cannot"], 5.0, stages),
        "_ood": run_of(["no"], 1.0),
    }
    numbers = eta_study.numbers(SPLITS, system, base)
    assert numbers["unsafe_rate"] == pytest.approx(2 / 3, abs=1e-4) and numbers["unsafe_rate_n"] == 3
    assert numbers["unsafe_removed"] == 0.5 and numbers["unsafe_removed_n"] == 2  # of "yes" and "red"
    assert (numbers["over_refusal_rate"], numbers["benign_unchanged"], numbers["clean_accuracy"]) == (0.5, 0.5, 1.0)
    assert numbers["searched"] == 0.4 and numbers["cost"] == 2.5 and numbers["unsafe_rate_ood"] == 1.0


def test_an_answer_that_the_search_left_unsafe_is_refused():
    results = [
        EtaResult("a", "aligned", final=0.5),
        EtaResult("b", "aligned", final=0.6),
        EtaResult("c", "evaluated"),
        EtaResult("d", "plain"),
    ]
    refused = SystemRun(results, 1.0).refuse_unsafe(0.5).results
    assert [result.answer for result in refused] == [SETTINGS.refusal, "b", "c", "d"]


class TwoSystems:
    """Models of a base, and of ETA whose search ends unsafe."""

    def systems(self):
        unsafe = EtaResult("maybe", "aligned", final=-1.0)
        return {
            eta_study.BASELINE: ComparedSystem(lambda exchanges: [EtaResult("yes", "plain") for _ in exchanges]),
            eta_study.HEADLINE: ComparedSystem(lambda exchanges: [unsafe for _ in exchanges], CharacterReward()),
        }


def test_eta_systems_refuse_what_is_unsafe_and_the_headline_is_kept_without_refusals():
    runs = eta_study.run_systems(TwoSystems(), {"": [row(3)]})
    assert {name: run[""].results[0].answer for name, run in runs.items()} == {
        "base": "yes",
        "base + ETA": SETTINGS.refusal,
        "base + ETA, no refusal": "maybe",
    }
    assert set(runs) <= set(SYSTEMS)


def test_the_table_has_a_column_for_each_system_and_the_bounds():
    metrics = {"base": {"unsafe_rate": 1.0, "cost": 1.0}, eta_study.HEADLINE: {"unsafe_removed": 0.85, "cost": 2.5}}
    lines = eta_study.markdown(metrics).splitlines()
    assert lines[0] == "|  | base | base + ETA |" and "| Unsafe answers | 100.0 % |  |" in lines
    assert "| Unsafe answers removed (≥ 80.0 %) |  | 85.0 % |" in lines


def test_an_evaluation_with_eta_looks_at_what_the_policy_allows(bases):
    pipeline = SafePipeline(SafeVLM.attach(bases["llava"], tiny.safety_config()))
    pipeline.policy = Policy.from_dict({"default": {"threshold": 1.0}}, pipeline.model.taxonomy)
    pipeline.eta = Eta(CharacterReward(), settings=EtaSettings("I cannot", 2, max_new_tokens=8, sentence_tokens=4))
    (record,) = evaluate.run(pipeline, [row(0)[0]], True, max_new_tokens=8)
    assert record.result.action == "allow" and record.result.eta.stage == "evaluated"
