"""ETA at its edges: late evaluators, strange scores and settings, streams, models with settings of their own."""

import itertools
import json
import threading
import time

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_evaluators
from helpers.tiny_evaluators import scripted

from safety_modules import SafeVLM
from safety_modules.eta import COSINE, REWARD, Eta, EtaError, EtaSettings, StockGenerator
from safety_modules.eta.config_file import load_eta
from safety_modules.eta.evaluators.head import HeadRisk
from safety_modules.eta.failsafe import Failsafe
from safety_modules.eta.search.search import Search
from safety_modules.pipeline import SafePipeline
from safety_modules.prompt.messages import ProcessingError, ask
from safety_modules.safe_generator import SafeGenerator, SafeRequest

REFUSAL = "No."


class Post:
    """Scores by a rule on the answer."""

    unit, threshold = REWARD, 0.0

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, exchanges, texts):
        return [self.rule(text) for text in texts]


def settings(**changes):
    values = {"prefix": "I cannot", "candidates": 2, "max_new_tokens": 12, "refusal": REFUSAL, "sentence_tokens": 4}
    return EtaSettings(**{**values, **changes})


def exchanges(count=2):
    return [ask(f"what is it? {i}", [tiny.image(i)]) for i in range(count)]


def rewards(numbers, texts):
    return [float(sum(map(ord, text)) % 97) for text in texts]


@pytest.fixture
def generator(bases):
    return StockGenerator.from_pretrained(bases["llava"])


@pytest.mark.parametrize("known", [float("nan"), 7.0, None])
def test_a_known_score_of_none_does_not_count_as_safe(generator, known):
    system = Eta(Post(lambda text: 1.0), HeadRisk(0.5), settings=settings())
    found = system(generator, exchanges(), known_scores=[known, 0.1])
    assert [result.stage for result in found] == ["evaluated" if known is None else "refused", "plain"]
    results = []
    list(system.stream(generator, exchanges()[0], known_scores=7.0, done=results.append))
    assert results[0].stage == "refused" and "7.0, which is not a probability" in results[0].reason


@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.float64(0.5), np.int64(0), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16)]
)
def test_a_score_may_be_a_number_of_numpy_or_torch(value):
    assert COSINE.check("it", value) == float(value) and type(COSINE.check("it", value)) is float


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), torch.tensor(True), torch.tensor([0.5]), "0.5", np.float32("nan"), 1j]
)
def test_what_is_not_a_number_is_not_a_score(value):
    with pytest.raises(EtaError, match="which is not a cosine"):
        COSINE.check("it", value)


def test_a_lazy_result_is_computed_within_the_time_limit():
    def lazily(rows):
        time.sleep(0.5)
        yield 1.0

    assert Failsafe(0.05)("it", REWARD, 1, lazily).failures == {0: "it did not answer within 0.05 s"}


def test_an_evaluator_that_ends_the_process_is_not_late():
    def leave(rows):
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        Failsafe(5.0)("it", REWARD, 1, leave)


def test_a_late_call_ends_before_the_next_begins():
    at_once, most, calls = [], [], []

    def slow(rows):
        at_once.append(1), most.append(len(at_once)), calls.append(1)
        time.sleep(0.3)
        at_once.pop()
        return [1.0]

    failsafe = Failsafe(0.1)
    found = [failsafe("it", REWARD, 1, slow) for _ in range(3)]
    assert all(scores.failures for scores in found)
    deadline = time.monotonic() + 5.0
    while any(thread.name == "eta it" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert max(most) == 1 and len(calls) < 3  # who gave up while it waited does not begin
    assert failsafe("it", REWARD, 1, lambda rows: [1.0]).values == [1.0] and failsafe.late == []


def test_the_evaluators_of_one_eta_wait_for_each_other(generator):
    system, running = Eta(Post(lambda text: 1.0), settings=settings(timeout_s=0.1)), threading.Event()
    system.post.rule = lambda text: time.sleep(0.6) or running.set() or 1.0
    assert system(generator, exchanges(1))[0].stage == "refused"
    system.post.rule, system.settings = lambda text: 1.0 if running.is_set() else -1.0, settings(timeout_s=5.0)
    assert system(generator, exchanges(1))[0].stage == "evaluated"


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"temperature": None}, "temperature is None; give a number above 0"),
        ({"prefix": None}, "prefix is None; give a text"),
        ({"refusal": 5}, "refusal is 5; give a text"),
        ({"share_cache": "no"}, "share_cache is 'no'; give true or false"),
    ],
)
def test_a_setting_of_the_wrong_type_is_an_error(changes, message):
    with pytest.raises(EtaError, match=message):
        settings(**changes)


def test_a_refusal_after_an_empty_stream_is_the_whole_answer(generator):
    assert list(Eta(Post(lambda text: -1.0), settings=settings()).stream(generator, exchanges()[0])) == [REFUSAL]


def test_a_space_separates_a_refusal_from_the_sentences_before_it(generator):
    options = settings(prefix="", candidates=1, top_k=1, sentence_tokens=2)
    generator.cache_can_be_shared = True
    system = Eta(Post(lambda text: 1.0 if text == "it" else -1.0), settings=options)
    with scripted(generator, ["a", "</s>", "i", "t", "s", "o"]):
        pieces = list(system.stream(generator, exchanges()[0]))
    assert pieces == ["it", f" {REFUSAL}"]


def test_a_stream_ends_without_the_spaces_that_the_whole_answer_lacks(generator):
    system = Eta(Post(lambda text: 1.0), HeadRisk(0.5), settings=settings())
    with scripted(generator, ["▁", "it", "▁", "is", "▁", "<0x0A>", "</s>"]):
        pieces = list(system.stream(generator, exchanges()[0], known_scores=0.1))
    assert "".join(pieces) == "it is"


def test_a_stream_holds_a_character_back_until_it_is_complete(generator):
    """A sentence of two tokens may end within the bytes of a character."""
    options = settings(prefix="", candidates=1, top_k=1, sentence_tokens=2, max_new_tokens=6)
    system = Eta(Post(lambda text: 1.0 if text.startswith("i") else -1.0), settings=options)
    bad, good = ["a", "</s>"], ["i", "<0xC3>", "<0xA9>", "i", "<0xC3>", "</s>"]
    generator.cache_can_be_shared, results = True, []
    with scripted(generator, [*bad, *good]):
        pieces = list(system.stream(generator, exchanges()[0], done=results.append))
    assert "".join(pieces) == results[0].answer == "iéi\ufffd" and results[0].stage == "aligned"
    assert pieces == ["i", "éi", "\ufffd"]


@pytest.mark.parametrize(
    "setting", [{"num_beams": 3}, {"min_new_tokens": 9}, {"repetition_penalty": 1.0, "max_length": 30}]
)
def test_a_models_own_generation_settings_do_not_change_the_search(generator, setting):
    options, requests = settings(max_new_tokens=40), exchanges()
    before = [path.answer_ids for path in Search(generator, options, rewards, None)(requests, [0, 1])]
    plain = generator.greedy(requests, 12).answers if "min_new_tokens" not in setting else None
    for name, value in setting.items():
        setattr(generator.model.generation_config, name, value)
    assert [path.answer_ids for path in Search(generator, options, rewards, None)(requests, [0, 1])] == before
    assert plain in (None, generator.greedy(requests, 12).answers)


def test_a_text_may_end_in_each_sentence_whatever_its_minimum_length(generator):
    generator.model.generation_config.min_new_tokens = 9
    with scripted(generator, itertools.repeat("</s>")):
        path = Search(generator, settings(top_k=1), rewards, None)(exchanges(), [0])[0]
    assert path.end == "end" and len(path.sentences) == 1


def test_any_of_several_end_tokens_ends_a_text(generator):
    other = generator.tokenizer.convert_tokens_to_ids("x")
    generator.model.generation_config.eos_token_id = [*generator.eos, other]
    generator.cache_can_be_shared, options = True, settings(prefix="", top_k=1, candidates=1)
    with scripted(generator, ["i", "x"] * 9):
        plain = generator.greedy(exchanges(1), 12)
        path = Search(generator, options, rewards, None)(exchanges(1), [0], plain)[0]
    assert plain.tokens == [2] and path.end == "end" and path.answer_ids[-1] == other and path.sampled == 2


def test_a_model_with_positions_beside_its_cache_computes_prompts_again(generator, caplog):
    before = [path.answer_ids for path in Search(generator, settings(), rewards, None)(exchanges(), [0, 1])]
    generator.cache_can_be_shared = None
    generator.model.model.rope_deltas = None  # as Qwen2-VL does: of the last batch, whatever is searched
    assert [path.answer_ids for path in Search(generator, settings(), rewards, None)(exchanges(), [0, 1])] == before
    assert generator.cache_can_be_shared is False and "cannot be cropped" in caplog.text


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stored_features_give_the_tokens_of_the_images_with_and_without_the_cache(bases, family):
    model = SafeVLM.attach(bases[family], tiny.safety_config())
    shown = [[tiny.image(0)], [], [tiny.image(1), tiny.image(2, (70, 30))]]
    requests = [ask(f"what is it? {i}", images) for i, images in enumerate(shown)]
    stored = SafePipeline(model).assess_with_features(requests)[1]
    ways = [
        [SafeRequest(row, "", kept if keep else None) for row, kept in zip(requests, stored)] for keep in (True, False)
    ]
    found = [
        [
            path.answer_ids
            for path in Search(SafeGenerator(model), settings(share_cache=share), rewards, None)(way, [0, 1, 2])
        ]
        for way in ways
        for share in (True, False)
    ]
    assert found[1:] == found[:1] * 3
    generator = SafeGenerator(model)
    assert ["".join(generator.stream(way[0], 12)) for way in ways] == [generator.greedy(ways[0], 12).answers[0]] * 2


def test_a_template_that_refuses_a_turn_is_an_error_of_the_exchange(generator):
    generator.processor.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ProcessingError, match="template refuses .*System role not supported"):
        generator.greedy(exchanges(1), 4)


def test_a_folder_that_holds_no_model_is_an_error_that_names_it(tmp_path):
    with pytest.raises(EtaError, match=f"{tmp_path}: cannot be loaded"):
        StockGenerator.from_pretrained(tmp_path)


def test_fitted_thresholds_replace_those_of_the_config_file(tmp_path):
    tiny_evaluators.clip_folder(tmp_path / "clip"), tiny_evaluators.reward_folder(tmp_path / "reward")
    side = {"unit": "cosine", "clean_rows": 9, "clean_flagged": 0.0, "risky_rows": 9, "risky_flagged": 1.0}
    data = {"budget": 0.1, "clean_flagged": 0.0, "risky_flagged": 1.0, "pre": {**side, "threshold": 0.21}}
    (tmp_path / "fitted.json").write_text(json.dumps({**data, "post": {**side, "unit": "reward", "threshold": 1.5}}))
    parts = "pre: {kind: clip, model: clip, threshold: 0.16}\npost: {kind: reward, model: reward, threshold: 0.06}\n"
    (tmp_path / "eta.yaml").write_text(parts + "thresholds: fitted.json\n")
    eta = load_eta(tmp_path / "eta.yaml")
    assert (eta.pre.threshold, eta.post.threshold) == (0.21, 1.5)
    (tmp_path / "eta.yaml").write_text(parts + "thresholds: 5\n")
    with pytest.raises(EtaError, match="thresholds is 5; give the name of a file"):
        load_eta(tmp_path / "eta.yaml")


def test_exchanges_may_be_tuples_and_hold_a_system_message(generator):
    system = Eta(Post(lambda text: 1.0), settings=settings())
    rows = [({"role": "system", "content": "be kind"}, *row) for row in exchanges()]
    assert [r.answer for r in system(generator, tuple(rows))] == [
        r.answer for r in system(generator, [list(row) for row in rows])
    ]
