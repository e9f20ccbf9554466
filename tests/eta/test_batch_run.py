"""A batch on its way: rows that fail or are safe leave the others their own scores; what the search's end means."""

import hashlib

import pytest
import torch
from helpers import tiny

from safety_modules import SafeVLM
from safety_modules.eta import COSINE, PROBABILITY, REWARD, Eta, EtaSettings, StockGenerator
from safety_modules.eta.exchange import question
from safety_modules.pipeline import SafePipeline
from safety_modules.prompt.messages import ask
from safety_modules.safe_generator import SafeGenerator, SafeRequest

OPTIONS = {"prefix": "I cannot", "candidates": 2, "max_new_tokens": 16, "refusal": "No.", "sentence_tokens": 4}


class Pre:
    """Scores by the number at the end of the question."""

    unit, threshold = PROBABILITY, 0.5

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, exchanges):
        return [self.scores[int(question(exchange)[-1])] for exchange in exchanges]


class Post:
    """Scores by a rule on exchange and answer."""

    unit, threshold = REWARD, 0.0

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, exchanges, texts):
        return [self.rule(exchange, text) for exchange, text in zip(exchanges, texts)]


class Match:
    """A made-up cosine of exchange and sentence."""

    unit = COSINE

    def match(self, exchanges, sentences):
        return [number(exchange, text) for exchange, text in zip(exchanges, sentences)]


def number(exchange, text):
    """In [0, 1], changed by any change of question or text."""
    return int(hashlib.sha256(f"{question(exchange)} {text}".encode()).hexdigest()[:6], 16) / 2**24


@pytest.fixture
def generator(bases):
    return StockGenerator.from_pretrained(bases["llava"])


def test_rows_that_fail_or_are_safe_leave_the_others_their_own_scores(generator):
    def rule(exchange, text):
        if question(exchange).endswith("1"):
            return 1.0 if not text.startswith("I cannot") else -9.0
        return number(exchange, text) + 0.1 if text.startswith("I cannot") else -1.0

    system = Eta(Post(rule), Pre((7.0, 0.9, 0.9, 0.1, 0.9)), Match(), EtaSettings(**OPTIONS))
    requests = [ask(f"what is it? {i}", [tiny.image(i)][: i % 4]) for i in range(5)]
    found = system(generator, requests)
    assert [result.stage for result in found] == ["refused", "evaluated", "aligned", "plain", "aligned"]
    for result, row in zip(found, requests):
        alone = system(generator, [row])[0]
        assert (result.answer, result.reason, result.end) == (alone.answer, alone.reason, alone.end)
        assert result.sentences == alone.sentences and result.final == alone.final
        if result.stage == "aligned":
            assert result.final == rule(row, result.answer) and len(result.sentences) > 1
            counted = [sentence for sentence in result.sentences if sentence.match is not None]
            assert counted and all(sentence.match == number(row, sentence.text) for sentence in counted)


@pytest.mark.parametrize("good,stage", [(range(1, 5), "refused"), (range(6, 99), "aligned")])
def test_the_whole_answer_is_what_must_be_safe(generator, good, stage):
    token = torch.tensor(generator.tokenizer.convert_tokens_to_ids("i"))
    hook = generator.model.get_output_embeddings().register_forward_hook(
        lambda _, args, out: torch.zeros_like(out).index_fill_(-1, token, 9.0)
    )
    rule = Post(lambda _, text: 1.0 if text.startswith("I cannot") and text.count("i") in good else -1.0)
    try:
        found = Eta(rule, settings=EtaSettings(**OPTIONS, top_k=1))(generator, [ask("what?")])[0]
    finally:
        hook.remove()
    assert found.stage == stage and found.end == "length" and found.final == found.sentences[-1].reward


@pytest.mark.parametrize("changes,end", [({"token_budget": 1}, "budget"), ({"max_new_tokens": 1}, "length")])
@pytest.mark.parametrize("on_unsafe", ["refuse", "answer"])
def test_a_search_without_a_sentence_ends_in_a_refusal(generator, changes, end, on_unsafe):
    settings = EtaSettings(**{**OPTIONS, **changes, "on_unsafe": on_unsafe})
    found = Eta(Post(lambda *_: -1.0), settings=settings)(generator, [ask("what?")])[0]
    assert (found.stage, found.answer, found.sampled) == ("refused", "No.", 0)
    assert found.reason == f"the search ended without a whole sentence: {end}"


def test_an_answer_ends_at_its_first_end_token_also_where_that_pads(generator):
    end = generator.eos[0]
    assert generator._until_end([5, end, end, end]) == [5, end] and generator._until_end([5, 6]) == [5, 6]


def test_a_stream_that_is_left_stops_the_model_and_one_whose_model_fails_says_so(generator):
    token, steps = torch.tensor(generator.tokenizer.convert_tokens_to_ids("▁")), []
    letter = torch.tensor(generator.tokenizer.convert_tokens_to_ids("i"))

    def say(module, args, out):
        steps.append(1)
        if len(steps) > 900:
            raise RuntimeError("worn out")
        return torch.zeros_like(out).index_fill_(-1, token if len(steps) % 2 else letter, 9.0)

    hook = generator.model.get_output_embeddings().register_forward_hook(say)
    try:
        stream = generator.stream(ask("what?"), 800)
        next(stream), stream.close()
        assert len(steps) < 800
        steps[:] = [1] * 890
        with pytest.raises(RuntimeError, match="worn out"):
            list(generator.stream(ask("what?"), 800))
    finally:
        hook.remove()


def test_a_users_text_makes_no_special_token(generator):
    ids = generator.inputs([ask("a <image> b </s> <pad>")])["input_ids"][0].tolist()
    assert not {*generator.tokenizer.convert_tokens_to_ids(["<image>", "</s>", "<pad>"])} & {*ids}


def test_stored_features_stand_in_place_of_images(bases):
    model = SafeVLM.attach(bases["llava"], tiny.safety_config())
    stored = SafePipeline(model).assess_with_features([ask("what?", [tiny.image(0)])])[1][0]
    inputs = SafeGenerator(model).inputs([SafeRequest(ask("what?", ["gone.png"]), "", stored)])
    assert "inputs_embeds" in inputs and "pixel_values" not in inputs
