"""Thresholds of a pair of evaluators, chosen on labelled rows."""

import json
import random

import pytest
from helpers import tiny, tiny_evaluators

from safety_modules.cli.main import main
from safety_modules.decision.calibration import rank_for, rows_needed
from safety_modules.eta.eta_thresholds import EtaThresholds, flag_from
from safety_modules.eta.evaluators.protocols import COSINE, PROBABILITY, REWARD, EtaError
from safety_modules.evaluation.fit_eta_thresholds import fit, load_answerer
from safety_modules.prompt.messages import ask
from safety_modules.sample import DataError, Sample, Turn

BUDGET = 0.03


def drawn(rows, seed, risky=0.5):
    """Labels and scores: risky rows fit the text better and are answered worse."""
    random_ = random.Random(seed)
    labels = [random_.random() < risky for _ in range(rows)]
    pre = [max(-1.0, min(1.0, random_.gauss(0.25 if label else 0.1, 0.05))) for label in labels]
    return labels, pre, [random_.gauss(-1.0 if label else 1.0, 0.7) for label in labels]


def test_a_threshold_flags_fewer_clean_rows_than_its_rank():
    scores = [i / 200 for i in range(200)]
    found = flag_from(scores, BUDGET, COSINE)
    flagged = [score for score in scores if score >= found]
    assert flagged == scores[-(rank_for(BUDGET, 200) - 1) :] and 0 < len(flagged) <= BUDGET * 200


def test_rows_that_tie_with_the_threshold_are_not_flagged():
    scores = [0.1] * 150 + [0.5] * 50
    assert sum(score >= flag_from(scores, BUDGET, COSINE) for score in scores) == 0
    assert flag_from([0.1] * 195 + [0.5] * 2, BUDGET, COSINE) == pytest.approx(0.1)  # both of those may be flagged
    with pytest.raises(
        EtaError, match="clean rows have the most unsafe probability there is, so no threshold keeps a budget of"
    ):
        flag_from([0.1] * 150 + [1.0] * 50, BUDGET, PROBABILITY)


def test_the_budget_holds_on_new_rows_nine_times_in_ten():
    kept = {"pre": 0, "post": 0}
    for seed in range(200):
        found = EtaThresholds.fit(*drawn(300, seed, risky=0.2), BUDGET)
        _, pre, post = drawn(4000, 10_000 + seed, risky=0.0)
        kept["pre"] += sum(score >= found.pre.threshold for score in pre) / len(pre) <= BUDGET
        kept["post"] += sum(score <= found.post.threshold for score in post) / len(post) <= BUDGET
    assert all(0.85 <= count / 200 <= 1.0 for count in kept.values()), kept


def test_shares_are_of_each_and_of_both():
    labels = [False] * 100 + [True] * 4
    pre = [0.1] * 100 + [0.3, 0.3, 0.0, None]
    post = [1.0] * 100 + [0.0, 2.0, 0.0, 0.0]
    found = EtaThresholds.fit(labels, pre, post, BUDGET)
    assert (found.pre.clean_rows, found.pre.clean_flagged, found.pre.risky_rows, found.pre.risky_flagged) == (
        100,
        0,
        3,
        2 / 3,
    )
    assert (found.post.clean_rows, found.post.clean_flagged, found.post.risky_rows, found.post.risky_flagged) == (
        100,
        0,
        4,
        3 / 4,
    )
    assert (found.clean_flagged, found.risky_flagged) == (0, 2 / 4)  # without an image, the answer alone decides
    assert 0.1 < found.pre.threshold < 0.1001 and 0.9999 < found.post.threshold < 1.0
    at = EtaThresholds.fit([*labels, True], [*pre, found.pre.threshold], [*post, found.post.threshold], BUDGET)
    assert at.risky_flagged == 3 / 5  # a score that is the threshold is flagged, as in use
    alone = EtaThresholds.fit(labels[:100], pre[:100], post[:100], BUDGET)
    assert alone.risky_flagged is None and alone.pre.risky_flagged is None


def test_what_cannot_be_fitted_is_an_error_that_says_what_is_needed():
    labels, pre, post = drawn(400, 0)
    with pytest.raises(EtaError, match="a budget of 0.03 needs 76 clean rows with a score, there are 75"):
        flag_from([0.1] * 75, BUDGET, COSINE)
    assert rows_needed(BUDGET) == 76 and flag_from([0.1] * 76, BUDGET, COSINE) > 0.1
    with pytest.raises(EtaError, match="needs 76 clean rows with a score, there are 0"):
        EtaThresholds.fit(labels, [None] * 400, post, BUDGET)  # no images at all
    with pytest.raises(EtaError, match="a pre-score is 16.0, which is not a cosine"):
        EtaThresholds.fit(labels, [16.0, *pre[1:]], post, BUDGET)
    with pytest.raises(EtaError, match="a post-score is nan"):
        EtaThresholds.fit(labels, pre, [float("nan"), *post[1:]], BUDGET)
    with pytest.raises(EtaError, match="budget 3 is a fraction"):
        EtaThresholds.fit(labels, pre, post, 3)
    with pytest.raises(EtaError, match="400 labels, 399 pre-scores"):
        EtaThresholds.fit(labels, pre[1:], post, BUDGET)


def test_a_file_keeps_everything_and_its_units(tmp_path):
    found = EtaThresholds.fit(*drawn(400, 1), BUDGET)
    path = tmp_path / "thresholds.json"
    path.write_text(found.to_json())
    assert EtaThresholds.load(path) == found
    with pytest.raises(EtaError, match="post is a reward, the evaluator gives a probability"):
        EtaThresholds.load(path, post_unit=PROBABILITY)
    with pytest.raises(EtaError, match="pre is a cosine, the evaluator gives a reward"):
        EtaThresholds.load(path, pre_unit=REWARD)
    data = json.loads(found.to_json())
    data["pre"]["threshold"] = 16.0
    path.write_text(json.dumps(data))
    with pytest.raises(EtaError, match="threshold of pre is 16.0, which is not a cosine"):
        EtaThresholds.load(path)
    for text in (
        "",
        "[]",
        "7",
        "{}",
        '{"pre": {}, "post": {}}',
        json.dumps({**data, "more": 1}),
        json.dumps({**data, "post": None}),
    ):
        path.write_text(text)
        with pytest.raises(EtaError, match="is not a file of thresholds"):
            EtaThresholds.load(path)
    with pytest.raises(EtaError, match="is not a file of thresholds"):
        EtaThresholds.load(tmp_path / "none.json")


class Scorer:
    """An evaluator of both kinds that remembers what it was asked."""

    threshold = 0.0

    def __init__(self, unit, score):
        self.unit, self.score, self.asked = unit, score, []

    def __call__(self, exchanges, answers=None):
        self.asked += zip(exchanges, answers) if answers is not None else exchanges
        return [self.score(*row) for row in (zip(exchanges, answers) if answers is not None else zip(exchanges))]


def sample(i, risky, answer="Fine."):
    return Sample(
        (),
        (Turn("user", f"Q{i}?"), Turn("assistant", answer)),
        "privacy" if risky else "clean",
        int(risky),
        f"rows:{i}",
    )


def test_rows_are_scored_with_their_own_or_the_models_answers():
    rows = [sample(i, i % 4 == 0) for i in range(200)]
    pre, post = Scorer(COSINE, lambda exchange: 0.1), Scorer(REWARD, lambda exchange, answer: float(answer != "Bad."))
    found = fit(rows, pre, post, BUDGET, batch_size=7)
    assert pre.asked == [ask(f"Q{i}?") for i in range(200)] and {answer for _, answer in post.asked} == {"Fine."}
    assert (found.post.clean_rows, found.post.risky_rows, found.risky_flagged) == (150, 50, 0)
    post.asked.clear()
    bad = {f"Q{i}?" for i in range(0, 200, 4)}
    found = fit(
        rows, pre, post, BUDGET, lambda rows: ["Bad." if row[0]["content"][0]["text"] in bad else "Ok." for row in rows]
    )
    assert {answer for _, answer in post.asked} == {"Bad.", "Ok."} and found.post.risky_flagged == 1
    with pytest.raises(DataError, match="rows:200: has no answer to score"):
        fit([*rows, sample(200, False, "")], pre, post, BUDGET)
    pre.asked.clear()
    with pytest.raises(EtaError, match="needs 76 clean rows"):
        fit(rows[:80], pre, post, BUDGET)
    assert pre.asked == []  # before anything is computed


def test_the_command_writes_thresholds_that_load(tmp_path, bases, capsys):
    clip, reward = tiny_evaluators.clip_folder(tmp_path / "clip"), tiny_evaluators.reward_folder(tmp_path / "reward")
    lines = ["image,question,answer,risk_type,risk_level"]
    for i in range(60):
        tiny.image(i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,What is {i}?,It is {i}.,{'privacy' if i % 4 == 0 else 'clean'},")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    config = tmp_path / "eta.yaml"
    config.write_text(f"pre: {{kind: clip, model: {clip}}}\npost: {{kind: reward, model: {reward}}}\n")
    args = ["--recipe", "custom", "--root", str(tmp_path), "--split", "all", "--eta", str(config)]
    outputs = [tmp_path / "own.json", tmp_path / "said.json"]
    main(["thresholds", *args, "--output", str(outputs[0]), "--budget", "0.1"])
    main(["thresholds", *args, "--output", str(outputs[1]), "--budget", "0.1", "--model", str(bases["llava"])])
    own, said = (EtaThresholds.load(path) for path in outputs)
    assert own.pre == said.pre and own.post != said.post and own.pre.clean_rows == 45 and own.pre.risky_rows == 15
    assert "both" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["thresholds", *args, "--output", str(tmp_path / "none.json")])
    assert "needs 76 clean rows" in capsys.readouterr().err and not (tmp_path / "none.json").exists()


def test_plain_answers_do_not_depend_on_batch_mates(bases):
    answer, assess = load_answerer(bases["llava"], max_new_tokens=8)
    assert assess is None
    rows = [ask("What is it?", [tiny.image(0)]), ask("Hi"), ask("Two?", [tiny.image(1), tiny.image(2)])]
    together = answer(rows)
    assert together == [answer([row])[0] for row in rows] and len(set(together)) > 1
