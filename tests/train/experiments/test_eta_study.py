"""What the ETA run measures: the slow search, its numbers, its table."""

import pytest
from helpers import tiny

from safety_modules import Policy, SafePipeline, SafeVLM
from safety_modules.eta import REWARD, AnswerGenerator, Eta, EtaResult, EtaSettings
from safety_modules.evaluation import evaluate
from safety_modules.sample import Sample, Turn
from train.experiments import eta_speed, eta_study
from train.experiments.eta_systems import Said, refused


class Length:
    """A reward by the text's letters."""

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


@pytest.mark.parametrize("share", [True, False])
def test_one_candidate_after_another_gives_the_tokens_of_the_search(bases, share):
    settings = EtaSettings("I cannot", 3, max_new_tokens=14, sentence_tokens=4, batch_size=2, share_cache=share)
    generator = AnswerGenerator.from_pretrained(bases["llava"])
    found = eta_speed.search_speed(generator, Eta(Length(), settings=settings), exchanges(), exchanges(), repeats=1)
    assert found["same_tokens"] == 1.0 and found["exchanges"] == 3
    assert found["best_of_n_speedup"] == pytest.approx(found["seconds_one_by_one"] / found["seconds_search"])


def test_one_candidate_after_another_ends_where_a_score_is_missing(bases):
    search = eta_speed.OneByOne(
        AnswerGenerator.from_pretrained(bases["llava"]),
        EtaSettings(max_new_tokens=14),
        lambda numbers, texts: [float("nan")] * len(texts),
        None,
    )
    (path,) = search(exchanges(1), [0])
    assert path.end == "failed" and path.sentences == []


def test_what_benign_traffic_pays_is_split_by_phase(monkeypatch):
    ticks = iter([0.0, 10.0, 10.0, 11.0, 11.0, 24.0])  # plain 10 s, assess 1 s, with ETA 13 s
    monkeypatch.setattr(eta_speed.time, "perf_counter", lambda: next(ticks))
    results = [
        EtaResult("a", "plain", seconds={"plain": 5.0}),
        EtaResult("b", "evaluated", seconds={"plain": 5.0, "post": 2.0}),
    ]
    found = eta_speed.benign_cost(lambda: ["a", "b"], lambda: None, lambda: results, repeats=1)
    assert found == {
        "benign_overhead": pytest.approx(0.3),
        "benign_evaluation": pytest.approx(0.3),
        "benign_search": 0.0,
        "seconds_plain": 5.0,
        "exchanges": 2,
    }


def row(level, question="what is it?", clean=False):
    turns = (Turn("user", question), Turn("assistant", "it is a key"))
    return Sample((), turns, "privacy" if level else "clean", level, "row"), {"clean": clean}


ASKED = {"": [row(3), row(3), row(1), row(0, clean=True), row(0)], "_ood": [row(2)]}


def test_the_numbers_of_a_system():
    base = {
        "": Said(["yes", "i cannot", "red", "it is a key", "blue"], 2.0, [None] * 5),
        "_ood": Said(["yes"], 1.0, [None]),
    }
    path = [EtaResult("", stage, final=-1.0) for stage in ("aligned", "evaluated", "refused", "plain", "plain")]
    said = {
        "": Said(["i cannot", "yes", "red", "it is a key", "i cannot"], 5.0, path),
        "_ood": Said(["no"], 1.0, [None]),
    }
    found = eta_study.numbers(ASKED, said, base)
    assert found["unsafe_rate"] == pytest.approx(2 / 3, abs=1e-4) and found["unsafe_rate_n"] == 3
    assert found["unsafe_removed"] == 0.5 and found["unsafe_removed_n"] == 2  # of "yes" and "red"; "i cannot" was safe
    assert (found["over_refusal_rate"], found["benign_unchanged"], found["clean_accuracy"]) == (0.5, 0.5, 1.0)
    assert found["searched"] == 0.4 and found["cost"] == 2.5 and found["unsafe_rate_ood"] == 1.0


def test_a_refusal_takes_the_place_of_what_the_search_left_unsafe():
    results = [
        EtaResult("a", "aligned", final=0.5),
        EtaResult("b", "aligned", final=0.6),
        EtaResult("c", "evaluated"),
        None,
    ]
    assert refused(Said(["a", "b", "c", "d"], 1.0, results), 0.5, "no").answers == ["no", "b", "c", "d"]


def test_the_table_has_a_column_for_each_system_and_the_bounds():
    metrics = {"base": {"unsafe_rate": 1.0, "cost": 1.0}, eta_study.HEADLINE: {"unsafe_removed": 0.85, "cost": 2.5}}
    lines = eta_study.markdown(metrics).splitlines()
    assert lines[0] == "| | base | base + ETA |" and "| Unsafe answers | 100.0 % |  |" in lines
    assert any(line.startswith("| Unsafe answers removed (≥ 80.0 %) |  | 85.0 %") for line in lines)


def test_an_evaluation_with_eta_looks_at_what_the_policy_allows(bases):
    pipeline = SafePipeline(SafeVLM.attach(bases["llava"], tiny.safety_config()))
    pipeline.policy = Policy.from_dict({"default": {"threshold": 1.0}}, pipeline.model.taxonomy)
    pipeline.eta = Eta(Length(), settings=EtaSettings("I cannot", 2, max_new_tokens=8, sentence_tokens=4))
    (record,) = evaluate.run(pipeline, [row(0)[0]], True, max_new_tokens=8)
    assert record.result.action == "allow" and record.result.eta.stage == "evaluated"
