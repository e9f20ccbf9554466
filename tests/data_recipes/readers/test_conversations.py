"""Conversations of LLaVA-like rows."""

import pytest

from data_recipes.readers.conversations import clean, turns
from safety_modules.sample import DataError


def said(*texts, names=("human", "gpt"), keys=("from", "value")):
    return [{keys[0]: names[place % 2], keys[1]: text} for place, text in enumerate(texts)]


@pytest.mark.parametrize("names", [("human", "gpt"), ("USER", "ASSISTANT"), ("user", "assistant"), ("Human", "GPT")])
def test_roles_have_many_names(names):
    assert [(turn.role, turn.text) for turn in turns(said("a", "b", names=names), 0)] == [
        ("user", "a"),
        ("assistant", "b"),
    ]


def test_role_and_content_are_read_as_well_and_a_system_sentence_in_front_is_left_to_the_template():
    conversation = [
        {"role": "system", "content": "Be kind."},
        *said("a", "b", names=("user", "assistant"), keys=("role", "content")),
    ]
    assert [turn.text for turn in turns(conversation, 0)] == ["a", "b"]


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("<image>\nWhat?", "What?"),
        ("<image>What?", "What?"),
        ("What?\n<image>", "What?"),
        ("<image>\n<image>\nWhat?", "What?"),
        ("Look at <image> and tell.", "Look at\nand tell."),
        ("What?", "What?"),
        ("<image>", ""),
        ("<image> <image> What?\n", "What?"),
        ("a < image > b", "a < image > b"),
    ],
)
def test_placeholders_are_taken_out_wherever_they_stand(text, cleaned):
    assert clean(text, 1) == cleaned


def test_a_placeholder_without_a_image_is_an_error():
    with pytest.raises(DataError, match="has <image> in its text and names no image; add the image"):
        clean("<image>\nWhat?", 0)


@pytest.mark.parametrize(
    "conversation, reason",
    [
        (None, "must be a list of turns"),
        ([], "must be a list of turns"),
        (["a"], "must be an object"),
        (said("a", "b", names=("human", "bot")), "role 'bot' of a turn is unknown; valid: human"),
        (said("a", None), "text None of a turn must be a text"),
        (said("a", ["b"]), r"text \['b'\] of a turn must be a text"),
        (said("a", "\ud800"), "half of a character pair"),
        ("USER: a", "must be a list of turns"),
        ({"from": "human", "value": "a"}, "must be a list of turns"),
        ([{"from": ["human"], "value": "a"}], r"role \['human'\] of a turn is unknown"),
        ([{"value": "a"}], "role None of a turn is unknown"),
        ([{"from": "system", "value": "x"}], "must alternate"),
        (said("<image>", "b"), "has <image> in its text and names no image"),
        (said("a"), "must alternate user, assistant, and end with an answer"),
        (said("a", "b", "c"), "must alternate"),
        (said("a", "b", names=("gpt", "human")), "must alternate"),
        ([*said("a"), *said("b", "c")], "must alternate"),
        (said("a", "  "), "the last answer is empty"),
        ([*said("a", "b"), {"from": "system", "value": "x"}], "must alternate"),
    ],
)
def test_what_is_no_conversation_is_an_error(conversation, reason):
    with pytest.raises(DataError, match=reason):
        turns(conversation, 0)


def test_all_turns_are_kept_also_where_only_the_second_is_refused():
    found = turns(said("What is it?", "A key.", "Copy it.", "I will not."), 1)
    assert [turn.text for turn in found] == ["What is it?", "A key.", "Copy it.", "I will not."]
