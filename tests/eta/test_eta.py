"""Eta from evaluation to answer: stages, thresholds, failures, streams."""

import logging
import time

import pytest
from helpers import tiny

from safety_modules.eta import COSINE, PROBABILITY, REWARD, Eta, EtaError, EtaSettings, StockGenerator
from safety_modules.eta.evaluators.head import HeadRisk, HeadVerdict
from safety_modules.eta.failsafe import Failsafe
from safety_modules.judges.phrases import PhraseJudge

REFUSAL = "No."


class Post:
    """Scores by a rule on the answer; counts what it is asked."""

    unit, threshold = REWARD, 0.0

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def __call__(self, exchanges, answers):
        self.asked.append(len(answers))
        return [self.rule(exchange, answer) for exchange, answer in zip(exchanges, answers)]


class Pre:
    """Scores of exchanges by their number in the text."""

    unit, threshold = PROBABILITY, 0.5

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, exchanges):
        return [self.scores[int(exchange[-1]["content"][-1]["text"][-1])] for exchange in exchanges]


def exchanges(count=4):
    return [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": tiny.image(i)}, {"type": "text", "text": f"what is it? {i}"}],
            }
        ]
        for i in range(count)
    ]


def aligned(exchange, answer):
    """Only what begins with the prefix is good."""
    return 1.0 if answer.startswith("I cannot") else -1.0


def eta(post=aligned, scores=(0.9, 0.9, 0.9, 0.9), **settings):
    values = {
        "prefix": "I cannot",
        "candidates": 2,
        "max_new_tokens": 12,
        "refusal": REFUSAL,
        "batch_size": 4,
        **settings,
    }
    return Eta(Post(post), Pre(scores) if scores else None, settings=EtaSettings(**values))


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return StockGenerator.from_pretrained(tiny.base_folder("llava", tmp_path_factory.mktemp("base")))


def test_each_exchange_stops_at_the_first_stage_that_finds_it_safe(generator):
    requests = exchanges()
    plain = generator.greedy(requests, 12).answers

    def post(exchange, answer):
        return (
            1.0 if exchange is requests[1] or (exchange is not requests[3] and answer.startswith("I cannot")) else -1.0
        )

    found = eta(post, (0.1, 0.9, 0.9, 0.9))(generator, requests)
    assert [result.stage for result in found] == ["plain", "evaluated", "aligned", "refused"]
    assert [result.answer for result in found[:2]] == plain[:2] and found[3].answer == REFUSAL
    assert found[2].answer.startswith("I cannot") and found[2].sentences[-1].reward == found[2].final == 1.0
    assert found[0].post is None and found[1].post == 1.0 and found[2].post == -1.0
    assert found[3].reason == "the aligned answer is unsafe as well" and found[3].sampled > 0
    assert [set(result.seconds) for result in found] == [
        {"pre", "plain"},
        {"pre", "plain", "post"},
        *[{"pre", "plain", "post", "search"}] * 2,
    ]
    assert found[0].to_dict()["pre"] == 0.1


def test_an_aligned_answer_that_is_still_unsafe_is_given_where_the_user_wants_the_papers_way(generator):
    found = eta(lambda *_: -1.0, on_unsafe="answer")(generator, exchanges(1))[0]
    assert found.stage == "aligned" and found.answer.startswith("I cannot") and found.final == -1.0


def test_thresholds_count_themselves_as_unsafe(generator):
    found = eta(lambda *_: 0.0, (0.5, 0.4999, 0.9, 0.9))(generator, exchanges())
    assert [result.stage for result in found] == ["refused", "plain", "refused", "refused"]


def test_benign_exchanges_cost_one_evaluation_and_no_search(generator):
    system = eta(lambda *_: 1.0, (0.1, 0.1, 0.9, 0.1))
    found = system(generator, exchanges())
    assert system.post.asked == [1] and not any(result.sampled for result in found)
    assert [result.answer for result in found] == generator.greedy(exchanges(), 12).answers


def test_without_a_pre_evaluator_or_a_image_the_answer_alone_decides(generator):
    assert [r.stage for r in eta(scores=None)(generator, exchanges(2))] == ["aligned", "aligned"]
    assert [r.stage for r in eta(scores=(None, 0.1))(generator, exchanges(2))] == ["aligned", "plain"]


def test_results_do_not_depend_on_the_batch(generator):
    together = [result.answer for result in eta()(generator, exchanges())]
    assert together == [result.answer for result in eta(batch_size=1)(generator, exchanges())]
    assert together[::-1] == [result.answer for result in eta(batch_size=3)(generator, exchanges()[::-1])]
    assert len(set(together)) > 1


def breaks(exchange, answer):
    raise RuntimeError("no such file")


def late(exchange, answer):
    time.sleep(1.0)
    return 1.0


@pytest.mark.parametrize(
    "post,reason",
    [
        (breaks, "the post-evaluator failed: RuntimeError: no such file"),
        (late, "the post-evaluator did not answer within 0.05 s"),
        (lambda *_: float("nan"), "the post-evaluator's score is nan, which is not a reward; give a finite number"),
        (lambda *_: None, "the post-evaluator's score is None"),
    ],
)
def test_an_evaluator_that_fails_ends_in_a_refusal_and_a_logged_reason(generator, caplog, post, reason):
    with caplog.at_level(logging.ERROR):
        found = eta(post, timeout_s=0.05)(generator, exchanges(1))[0]
    assert (found.stage, found.answer) == ("refused", REFUSAL)
    assert found.reason.startswith(reason) and reason in caplog.text


def test_a_pre_evaluator_that_fails_refuses_without_an_answer(generator):
    found = eta(scores=(7.0, 0.1))(generator, exchanges(2))
    assert [r.stage for r in found] == ["refused", "plain"] and found[0].tokens == 0
    assert (
        found[0].reason
        == "the pre-evaluator's score is 7.0, which is not a probability; give a finite number from 0 to 1"
    )


def test_only_the_exchanges_that_an_evaluator_fails_on_are_refused(generator):
    requests = exchanges()

    def post(exchange, answer):
        return breaks(exchange, answer) if exchange is requests[2] else 1.0

    assert [r.stage for r in eta(post)(generator, requests)] == ["evaluated", "evaluated", "refused", "evaluated"]


def test_an_evaluator_that_fails_within_the_search_ends_in_a_refusal(generator):
    def post(exchange, answer):
        return breaks(exchange, answer) if answer.startswith("I cannot") else -1.0

    found = eta(post)(generator, exchanges(1))[0]
    assert found.stage == "refused" and found.end == "failed" and "no such file" in found.reason


def test_a_matcher_that_fails_ends_in_a_refusal(generator):
    class Match:
        def match(self, exchanges, sentences):
            return [16.0] * len(sentences)

    system = eta(sentence_tokens=3)
    system.match = Match()
    found = system(generator, exchanges(1))[0]
    assert found.stage == "refused" and found.reason.startswith("the matcher's score is 16.0, which is not a cosine")


def test_a_wrong_number_of_scores_is_a_failure():
    scores = Failsafe(None)("it", REWARD, 2, lambda rows: [1.0])
    assert [str(value) for value in scores.values] == ["1.0", "1.0"]  # one by one, each has its score
    scores = Failsafe(None)("it", REWARD, 1, lambda rows: [1.0, 2.0])
    assert scores.failures[0].startswith("it failed: EtaError: it returned 2 scores for 1 rows")


def test_ctrl_c_is_not_a_failure_of_an_evaluator():
    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Failsafe(None)("it", REWARD, 2, stop)


def test_an_empty_answer_is_evaluated_like_any_other(generator, monkeypatch):
    monkeypatch.setattr(generator, "text", lambda ids: "")
    found = eta(lambda exchange, answer: 1.0 if answer == "" else -1.0)(generator, exchanges(1))[0]
    assert (found.stage, found.answer) == ("evaluated", "")


@pytest.mark.parametrize("scores", [(0.1,), (0.9,)])
def test_a_stream_says_what_the_whole_would(generator, scores):
    whole, told = eta(scores=scores)(generator, exchanges(1))[0], []
    pieces = list(eta(scores=scores).stream(generator, exchanges(1)[0], done=told.append))
    assert "".join(pieces) == whole.answer == told[0].answer
    assert len(pieces) == len(whole.sentences) or scores == (0.1,)
    assert told[0].stage == whole.stage and all(pieces)


def test_a_stream_never_says_an_unsafe_sentence(generator):
    said = []

    def post(exchange, answer):
        good = answer.startswith("I cannot") and len(answer) < 14
        return 1.0 if good else -1.0

    told = []
    system = eta(post, sentence_tokens=2, max_new_tokens=30)
    for piece in system.stream(generator, exchanges(1)[0], done=told.append):
        said.append(piece)
    assert said[-1].strip() == REFUSAL and len("".join(said[:-1])) < 14 and told[0].stage == "refused"


def test_a_stream_that_nobody_reads_on_stops_the_model(generator):
    stream = eta(scores=(0.1,), max_new_tokens=2000).stream(generator, exchanges(1)[0])
    next(stream)
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"candidates": 0}, "candidates is 0; give a whole number from 1 up"),
        ({"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"top_k": 2.5}, "top_k is 2.5; give a whole number from 0 up"),
        ({"seconds": -1}, "seconds is -1; give a number above 0"),
        ({"on_unsafe": "allow"}, "on_unsafe 'allow'; valid: refuse, answer"),
        ({"refusal": " "}, "refusal is empty"),
        ({"alpha": float("nan")}, "alpha is nan; give a number from 0 up"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(EtaError, match=message):
        EtaSettings(**changes)


def test_a_threshold_in_the_wrong_unit_is_refused():
    post, pre = Post(aligned), Pre(())
    pre.unit, pre.threshold = COSINE, 16.0  # the release's default, which never fires
    with pytest.raises(
        EtaError, match="pre.threshold is 16.0, which is not a cosine; give a finite number from -1 to 1"
    ):
        Eta(post, pre)


class Found:
    """An assessment."""

    def __init__(self, risk):
        self.risk = risk


def test_the_heads_verdict_is_asked_once_for_each_exchange():
    asked, pair = [], exchanges(2)

    def assess(rows):
        asked.append(len(rows))
        return [Found(0.2 if row is pair[0] else 0.9) for row in rows]

    verdict = HeadVerdict(0.5, assess)
    answers = ["it is red", "I cannot help.", "it is red", "take care"]
    assert verdict([pair[0], pair[1], pair[1], pair[1]], answers) == pytest.approx([0.8, 1.0, 0.1, 1.0]) and asked == [
        2
    ]
    assert HeadRisk(0.5, assess)(pair) == [0.2, 0.9]
    with pytest.raises(EtaError, match="give it assess"):
        HeadRisk(0.5)(pair)
    assert PhraseJudge().over_refuses("take care")
