"""Conversations of LLaVA-like rows."""

import pytest

from data_recipes.readers.conversations import turns, without_placeholders
from safety_modules.sample import DataError


def conversation(*texts, names=("human", "gpt"), keys=("from", "value")):
    return [{keys[0]: names[place % 2], keys[1]: text} for place, text in enumerate(texts)]


@pytest.mark.parametrize("names", [("human", "gpt"), ("USER", "ASSISTANT"), ("user", "assistant"), ("Human", "GPT")])
def test_roles_have_many_names(names):
    assert [(turn.role, turn.text) for turn in turns(conversation("a", "b", names=names), 0)] == [
        ("user", "a"),
        ("assistant", "b"),
    ]


def test_role_and_content_are_read_as_well_and_a_system_sentence_in_front_is_left_to_the_template():
    value = [
        {"role": "system", "content": "Be kind."},
        *conversation("a", "b", names=("user", "assistant"), keys=("role", "content")),
    ]
    assert [turn.text for turn in turns(value, 0)] == ["a", "b"]


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
    assert without_placeholders(text, 1) == cleaned


def test_a_placeholder_without_an_image_is_an_error():
    with pytest.raises(DataError, match="has <image> in its text and names no image; add the image"):
        without_placeholders("<image>\nWhat?", 0)


@pytest.mark.parametrize(
    "value, reason",
    [
        (None, "must be a list of turns"),
        ([], "must be a list of turns"),
        (["a"], "must be an object"),
        (conversation("a", "b", names=("human", "bot")), "role 'bot' of a turn is unknown; valid: human"),
        (conversation("a", None), "text None of a turn must be a text"),
        (conversation("a", ["b"]), r"text \['b'\] of a turn must be a text"),
        (conversation("a", "\ud800"), "half of a surrogate pair"),
        ("USER: a", "must be a list of turns"),
        ({"from": "human", "value": "a"}, "must be a list of turns"),
        ([{"from": ["human"], "value": "a"}], r"role \['human'\] of a turn is unknown"),
        ([{"value": "a"}], "role None of a turn is unknown"),
        ([{"from": "system", "value": "x"}], "must alternate"),
        (conversation("<image>", "b"), "has <image> in its text and names no image"),
        (conversation("a"), "must alternate user, assistant, and end with an answer"),
        (conversation("a", "b", "c"), "must alternate"),
        (conversation("a", "b", names=("gpt", "human")), "must alternate"),
        ([*conversation("a"), *conversation("b", "c")], "must alternate"),
        (conversation("a", "  "), "the last answer is empty"),
        ([*conversation("a", "b"), {"from": "system", "value": "x"}], "must alternate"),
    ],
)
def test_what_is_not_a_conversation_is_an_error(value, reason):
    with pytest.raises(DataError, match=reason):
        turns(value, 0)


def test_all_turns_are_kept_also_where_only_the_second_is_refused():
    kept = turns(conversation("What is it?", "A key.", "Copy it.", "I will not."), 1)
    assert [turn.text for turn in kept] == ["What is it?", "A key.", "Copy it.", "I will not."]
