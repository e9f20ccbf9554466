"""The search against brute force, with and without the shared cache, and at its bounds."""

import hashlib
import itertools

import pytest
import torch
from helpers import tiny
from helpers.tiny_evaluators import scripted

from safety_modules.eta import EtaSettings, StockGenerator
from safety_modules.eta.search.cache import can_crop, crop_cache
from safety_modules.eta.search.search import Search, sample_seed
from safety_modules.eta.search.sentences import ends_sentence

SETTINGS = {
    "prefix": "I cannot",
    "candidates": 3,
    "top_k": 4,
    "temperature": 1.3,
    "sentence_tokens": 5,
    "max_new_tokens": 17,
}


def stop(text):
    """Ends a sentence of the tiny model, whose text is noise: at some characters."""
    return text.endswith(("a", "e", "."))


def settings(**changes):
    return EtaSettings(**{**SETTINGS, "ends_sentence": stop, **changes})


def number(text):
    """A made-up score in [-1, 1] that any change of the text changes."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 2**23 - 1


def reward(numbers, texts):
    return [number(f"{i} {text}") for i, text in zip(numbers, texts)]


def match(numbers, texts):
    return [number(f"image {i} {text}") for i, text in zip(numbers, texts)]


def exchanges():
    """With one image, with two, with none; of different lengths."""
    texts = ["what is it?", "what colour is this image? answer with care", "two stars"]
    images = [[tiny.image(0)], [tiny.image(1), tiny.image(2, (70, 30))], []]
    return [
        [{"role": "user", "content": [*({"type": "image", "image": p} for p in shown), {"type": "text", "text": text}]}]
        for text, shown in zip(texts, images)
    ]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def generator(request, tmp_path_factory):
    return StockGenerator.from_pretrained(tiny.base_folder(request.param, tmp_path_factory.mktemp("base")))


def brute_force(generator, exchange, index, options):
    """One exchange, one candidate after another, the whole text again for every token; written from the paper alone."""
    inputs = generator.inputs([exchange])
    prompt = inputs["input_ids"][0].tolist()
    generators = [
        torch.Generator().manual_seed(sample_seed(options.seed, prompt, n)) for n in range(options.candidates)
    ]
    answer_ids, sentence = generator.prefix(options.prefix), 1
    while True:
        found = []
        for draws in generators:
            new = []
            while len(new) < min(options.sentence_tokens, options.max_new_tokens - len(answer_ids)):
                whole = torch.tensor([prompt + answer_ids + new])
                rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
                logits = (
                    generator.model(input_ids=whole, attention_mask=torch.ones_like(whole), **rest)
                    .logits[0, -1]
                    .float()
                )
                logits[generator.suppress] = -torch.inf
                kept = (logits / options.temperature).topk(options.top_k)
                chances = torch.zeros_like(logits).scatter(0, kept.indices, kept.values.softmax(-1))
                new.append(int(torch.multinomial(chances[None], 1, generator=draws)))
                if new[-1] in generator.eos or stop(generator.tokenizer.decode(new, skip_special_tokens=True)):
                    break
            found.append(new)
        ended = any(new[-1] in generator.eos for new in found)
        values = []
        for new in found:
            value = reward([index], [generator.text(answer_ids + new)])[0]
            if sentence > 1 and not ended:
                value += options.alpha / sentence * match([index], [generator.text(new)])[0]
            values.append(value)
        answer_ids = answer_ids + found[values.index(max(values))]
        sentence += 1
        if answer_ids[-1] in generator.eos or len(answer_ids) >= options.max_new_tokens:
            return answer_ids


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"prefix": ""}, {"alpha": 4.0, "seed": 7}, {"top_k": 2, "max_new_tokens": 40}])
def test_the_search_is_brute_force(generator, changes):
    requests, options = exchanges(), settings(**changes)
    paths = Search(generator, options, reward, match)(requests, [0, 1, 2])
    assert generator.cache_can_be_shared
    assert [path.answer_ids for path in paths] == [
        brute_force(generator, ask, i, options) for i, ask in enumerate(requests)
    ]
    assert all(len(path.sentences) > 1 for path in paths)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "I cannot"])
def test_the_shared_cache_gives_the_tokens_of_the_search_without(generator, prefix):
    requests = exchanges()
    plain = generator.greedy(requests, 6)
    shared = Search(generator, settings(prefix=prefix), reward, match)(requests, [0, 1, 2], plain)
    again = Search(generator, settings(prefix=prefix, share_cache=False), reward, match)(requests, [0, 1, 2])
    assert [path.answer_ids for path in shared] == [path.answer_ids for path in again]
    for i, ask in enumerate(requests):  # nor do batch mates matter
        rewards = Search(
            generator,
            settings(prefix=prefix),
            lambda _, t, i=i: reward([i] * len(t), t),
            lambda _, t, i=i: match([i] * len(t), t),
        )
        assert rewards([ask], [0])[0].answer_ids == shared[i].answer_ids


def test_the_prompt_is_computed_once_and_accepted_sentences_never_again(generator):
    requests, fed = exchanges()[:2], []
    plain = generator.greedy(requests, 3)
    Search(generator, settings(), reward, match)(requests, [0, 1], plain)  # the trial of the cropped cache comes once
    hook = generator.model.get_input_embeddings().register_forward_hook(
        lambda _, args, out: fed.append(tuple(args[0].shape))
    )
    tower = generator.model.get_submodule("model.vision_tower")
    seen = tower.register_forward_hook(lambda *_: fed.append("image"))
    try:
        paths = Search(generator, settings(), reward, match)(requests, [0, 1], plain)
    finally:
        hook.remove(), seen.remove()
    prefix = len(generator.prefix(SETTINGS["prefix"]))
    assert fed[0] == (6, prefix) and "image" not in fed  # what the plain answers' cache lacks
    assert all(shape[1] == 1 for shape in fed[1:])
    assert len(fed) <= sum(len(path.sentences) for path in paths) * SETTINGS["sentence_tokens"]


@torch.no_grad()
def test_one_candidate_without_prefix_is_plain_sampling(generator):
    ask = exchanges()[0]
    options = settings(candidates=1, prefix="", top_k=7, temperature=0.9, max_new_tokens=30)
    answer_ids = Search(generator, options, reward, match)([ask], [0])[0].answer_ids
    inputs = generator.inputs([ask])
    torch.manual_seed(sample_seed(0, inputs["input_ids"][0].tolist(), 0))
    kwargs = {"do_sample": True, "top_k": 7, "temperature": 0.9, "top_p": 1.0, "max_new_tokens": 30}
    stock = generator.model.generate(**inputs, **kwargs, suppress_tokens=generator.suppress)
    assert answer_ids == stock[0, inputs["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def test_with_many_candidates_the_best_of_all_sentences_is_found(generator):
    """Of two tokens with two choices each, all four sentences are sampled: the result is the best possible."""
    ask = exchanges()[0]
    options = settings(candidates=48, top_k=2, temperature=50.0, sentence_tokens=2, max_new_tokens=2, prefix="")
    path = Search(generator, options, reward, None)([ask], [0])[0]
    inputs, possible = generator.inputs([ask]), []
    rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}

    def best_two(ids):
        logits = generator.model(input_ids=ids, attention_mask=torch.ones_like(ids), **rest).logits[0, -1]
        logits[generator.suppress] = -torch.inf
        return logits.topk(2).indices.tolist()

    for first in best_two(inputs["input_ids"]):
        text = generator.tokenizer.decode([first], skip_special_tokens=True)
        if first in generator.eos or stop(text):
            possible.append([first])
            continue
        more = best_two(torch.cat([inputs["input_ids"], torch.tensor([[first]])], 1))
        possible += [[first, second] for second in more]
    assert path.sentences[0].reward == max(reward([0], [generator.text(ids)])[0] for ids in possible)


@pytest.mark.parametrize("longest,prefix", [*itertools.product([1, 2, 5, 11], ["", "I cannot help with this."])])
def test_no_answer_is_longer_than_its_bound(generator, longest, prefix):
    paths = Search(generator, settings(max_new_tokens=longest, prefix=prefix), reward, match)(exchanges(), [0, 1, 2])
    assert all(len(path.answer_ids) <= longest and path.end in ("end", "length") for path in paths)


def test_a_budget_of_tokens_ends_the_search_with_the_best_so_far(generator):
    whole = Search(generator, settings(max_new_tokens=60), reward, None)(exchanges(), [0, 1])
    short = Search(generator, settings(max_new_tokens=60, token_budget=25), reward, None)(exchanges(), [0, 1])
    for path, full in zip(short, whole):
        assert path.sampled <= 25 and path.end == "budget" and path.sentences
        assert full.sentences[: len(path.sentences) - 1] == path.sentences[:-1]  # the last may be cut short


def test_a_budget_of_seconds_ends_the_search_with_the_best_so_far(generator, monkeypatch):
    from safety_modules.eta.search import search

    ticks = itertools.count()
    monkeypatch.setattr(search.time, "monotonic", lambda: float(next(ticks)))
    path = Search(generator, settings(seconds=6.0, max_new_tokens=200), reward, None)(exchanges()[:1], [0])[0]
    assert path.end in ("time", "end") and len(path.sentences) < 6
    assert generator.text(path.answer_ids)


def test_a_missing_score_ends_its_path_alone(generator):
    def broken(numbers, texts):
        return [float("nan") if i == 1 else 0.5 for i in numbers]

    paths = Search(generator, settings(), broken, None)(exchanges(), [0, 1, 2])
    assert [path.end == "failed" for path in paths] == [False, True, False]
    assert paths[1].sentences == [] and paths[0].sentences


def test_a_text_that_ends_at_once_is_empty(generator):
    with scripted(generator, itertools.repeat("</s>")):
        path = Search(generator, settings(prefix="", top_k=1), reward, match)(exchanges()[:1], [0])[0]
    assert path.answer_ids == [generator.eos[0]] and path.end == "end" and path.sentences[0].text == ""


def test_a_text_without_any_full_stop_is_cut_into_sentences_of_the_bound(generator):
    with scripted(generator, itertools.repeat("1")):
        path = Search(generator, settings(prefix="", top_k=1), reward, match)(exchanges()[:1], [0])[0]
    assert path.end == "length" and [sentence.text for sentence in path.sentences] == ["11111", "11111", "11111", "11"]


def test_a_budget_of_seconds_also_ends_a_sentence(generator):
    options = settings(top_k=1, candidates=1, seconds=0.3, sentence_tokens=1500, max_new_tokens=1500)
    with scripted(generator, itertools.repeat("1")):
        path = Search(generator, options, reward, match)(exchanges()[:1], [0])[0]
    assert path.end == "time" and 0 < path.sampled < 1000 and len(path.sentences) == 1


def test_a_model_that_does_not_continue_a_cropped_cache_computes_prompts_again(generator, monkeypatch, caplog):
    def damaged(cache, cache_spans, copies=1):
        fresh = crop_cache(cache, cache_spans, copies)
        for layer in fresh.layers:
            layer.keys.neg_()
        return fresh

    again = Search(generator, settings(share_cache=False), reward, match)(exchanges(), [0, 1, 2])
    monkeypatch.setattr("safety_modules.eta.search.search.crop_cache", damaged)
    monkeypatch.setattr(generator, "cache_can_be_shared", None)
    for _ in range(2):
        found = Search(generator, settings(), reward, match)(exchanges(), [0, 1, 2])
        assert generator.cache_can_be_shared is False and [path.answer_ids for path in found] == [
            path.answer_ids for path in again
        ]
    assert caplog.text.count("does not continue a cropped cache") == 1


def test_a_sentence_has_its_scores(generator):
    path = Search(generator, settings(alpha=0.5), reward, match)(exchanges(), [1])[0]
    first, *more = path.sentences
    assert first.match is None and more and first.candidates == 3
    counted = [sentence for sentence in more if sentence.match is not None]
    assert counted and all(sentence.match == match([1], [sentence.text])[0] for sentence in counted)


def test_a_cropped_cache_holds_the_rows_that_were_asked_for(generator):
    plain = generator.greedy(exchanges(), 2)
    assert can_crop(plain.cache, generator.model)
    longest = max(map(len, plain.ids))
    part = crop_cache(plain.cache, [(1, longest - len(plain.ids[1]), longest), (0, longest - 3, longest)], copies=2)
    keys, old = part.layers[-1].keys, plain.cache.layers[-1].keys
    assert keys.shape[0] == 4 and keys.shape[2] == len(plain.ids[1])
    assert torch.equal(keys[2][:, -3:], old[0][:, longest - 3 : longest]) and not keys[3][:, :-3].any()
    assert torch.equal(keys[0], old[1][:, longest - len(plain.ids[1]) : longest])


@pytest.mark.parametrize(
    "text,whole",
    [
        ("Take care.", True), ("He said “no.”", True), ("(see it.)", True), ("**Stop!**", True), ("Really?!", True),
        ("他走了。", True), ("क्या है।", True), ("هل هذا؟", True), ("a line\n", True),
        ("It is 3.", False), ("1.", False), ("...", False), ("\n", False), ("and", False), ("", False),
    ],
)  # fmt: skip
def test_where_a_sentence_ends(text, whole):
    assert ends_sentence(text) is whole
