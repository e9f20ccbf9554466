"""StockGenerator and SafeGenerator: every method of an AnswerGenerator, also where tokens are bytes of a character."""

import pytest
import torch
from helpers import tiny
from helpers.tiny_evaluators import scripted

from safety_modules import SafeVLM
from safety_modules.eta import StockGenerator
from safety_modules.prompt.messages import ask
from safety_modules.safe_generator import SafeGenerator, SafeRequest

LONGEST = 24


def stock(base):
    return StockGenerator.from_pretrained(base), list


def safe(base):
    torch.manual_seed(1)
    model = SafeVLM.attach(base, tiny.safety_config())
    return SafeGenerator(model), lambda messages: SafeRequest(messages, "answer with care.")


@pytest.fixture(params=[stock, safe])
def generator_and_requests(request, base):
    generator, as_request = request.param(base)
    return generator, [
        as_request(ask("what is it?", [tiny.image(0)])),
        as_request(ask("name two blue stars, with care")),
    ]


def continuation(generator, inputs, count):
    """Greedy ids after some inputs, (B, count)."""
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count}
    ids = generator.model.generate(**generator.generate_inputs(inputs), suppress_tokens=generator.suppress, **options)
    return ids[:, -count:]


def token_names(generator, answer):
    """An answer of characters and bytes ("i", 0xE4) as names of tokens, whichever way the tokenizer spells bytes."""
    vocabulary = generator.tokenizer.get_vocab()
    fallback = "<0xE4>" in vocabulary
    names = [part if isinstance(part, str) else f"<0x{part:02X}>" if fallback else BYTE_LEVEL[part] for part in answer]
    assert set(names) <= set(vocabulary)
    return names


BYTE_LEVEL = {0x37: "7", 0xE4: "ä", 0xBD: "½", 0xA0: "ł", 0xE5: "å", 0xC3: "Ã", 0xA9: "©"}


def test_inputs_are_padded_on_the_left(generator_and_requests):
    generator, requests = generator_and_requests
    inputs = generator.inputs(requests)
    mask = inputs["attention_mask"]
    lengths = [generator.inputs([request])["input_ids"].shape[1] for request in requests]
    assert mask.sum(1).tolist() == lengths and lengths[0] != lengths[1]
    assert all(not row[: max(lengths) - length].any() for row, length in zip(mask, lengths))
    assert inputs["input_ids"].shape == mask.shape == (2, max(lengths))


def test_an_answer_begins_with_the_prefix(generator_and_requests):
    generator, _ = generator_and_requests
    assert generator.prefix("") == [] and generator.text(generator.prefix("I cannot")) == "I cannot"


def test_eos_is_the_models_own_or_else_the_tokenizers(generator_and_requests):
    generator, _ = generator_and_requests
    config, end = generator.model.generation_config, generator.tokenizer.eos_token_id
    values = []
    for config.eos_token_id in (end, [end, 7], None):
        values.append(generator.eos)
    assert values == [[end], [end, 7], [end]]


def test_no_answer_has_a_placeholder(generator_and_requests):
    generator, requests = generator_and_requests
    image = generator.tokenizer.convert_tokens_to_ids("<image>")
    assert image in generator.suppress
    with scripted(generator, ["<image>"] * 3):
        assert not set(generator.suppress) & set(
            continuation(generator, generator.inputs(requests), 3).flatten().tolist()
        )


def test_a_greedy_answer_does_not_depend_on_the_batch(generator_and_requests):
    generator, requests = generator_and_requests
    greedy = generator.greedy(requests, LONGEST)
    single = [generator.greedy([request], LONGEST) for request in requests]
    assert greedy.answers == [row.answers[0] for row in single] and greedy.tokens == [row.tokens[0] for row in single]
    assert greedy.ids == [row.ids[0] for row in single] and all(0 < count <= LONGEST for count in greedy.tokens)


def test_a_stream_is_the_greedy_answer(generator_and_requests):
    generator, requests = generator_and_requests
    for request, answer in zip(requests, generator.greedy(requests, LONGEST).answers):
        pieces = list(generator.stream(request, LONGEST))
        assert "".join(pieces) == answer and len(pieces) > 1


@torch.no_grad()
def test_extended_inputs_continue_the_answers(generator_and_requests):
    generator, requests = generator_and_requests
    inputs = generator.inputs(requests)
    ids = continuation(generator, inputs, 8)
    extended = generator.extend(inputs, [ids[0, :5].tolist(), ids[1, :2].tolist()])
    assert extended["attention_mask"].sum(1).tolist() == [
        int(row.sum()) + n for row, n in zip(inputs["attention_mask"], (5, 2))
    ]
    assert extended["input_ids"][0, -5:].tolist() == ids[0, :5].tolist()
    after = continuation(generator, extended, 3)
    assert after.tolist() == [ids[0, 5:].tolist(), ids[1, 2:5].tolist()]


@pytest.mark.parametrize(
    "answer,text",
    [
        (["i", 0xE4, 0xBD, 0xA0, "s"], "i你s"),
        (["i", 0xE4, 0xBD, 0xA0], "i你"),
        (["i", 0xE4, 0xBD, 0xA0, 0xC3, 0xA9, "s"], "i你és"),
        (["i", 0xE4, "s"], "i\ufffds"),
        ([0xE4, 0xBD], None),  # how many U+FFFD stand for it is the decoder's
        (["i", 0xE4, 0xBD, 0xA0, 0xE5], None),
        (["i", 0xE4, 0xBD, 0xA0, 0xE5, "s"], None),
        (["i", 0xE4, "<s>", 0xBD, 0xA0, "s"], "i你s"),  # a special token does not divide a character
        (["i", 0x37, "<pad>", 0xE4, "s"], None),
        (["i", 0x37, "<unk>"], "i7"),
    ],
)
def test_streamed_bytes_are_the_whole_answer(generator_and_requests, answer, text):
    generator, requests = generator_and_requests
    names = [*token_names(generator, answer), generator.tokenizer.eos_token]
    ids = generator.tokenizer.convert_tokens_to_ids(names)
    with scripted(generator, names):
        whole = generator.greedy(requests[:1], LONGEST).answers[0]
    with scripted(generator, names):
        pieces = list(generator.stream(requests[0], LONGEST))
    assert "".join(pieces) == whole == generator.text(ids) and text in (whole, None)
    assert all(whole.startswith(generator.settled_text(ids[:count])) for count in range(len(ids) + 1))
    assert "\ufffd" in whole or not any("\ufffd" in piece for piece in pieces)
