"""Baselines of ETA: exactly what each step asks a model, by a model that answers from a script."""

import pytest

from safety_modules.eta.baselines import BLIND, CAPTION, CHECK, CLOSED, PLAIN, SENTENCE, Ecso, says_yes, system_prompt
from safety_modules.eta.evaluators.protocols import EtaError

PICTURE = {"type": "image", "image": "a.png"}


def text(words):
    return {"type": "text", "text": words}


def user(words, *images):
    return {"role": "user", "content": [*images, text(words)]}


class Script:
    """Answers in turn from lists, one list for each call, and keeps what it was asked."""

    def __init__(self, *calls):
        self.calls, self.asked = list(calls), []

    def __call__(self, exchanges, max_new_tokens):
        self.asked.append((exchanges, max_new_tokens))
        return self.calls.pop(0)


def test_system_prompt_puts_the_sentence_first_and_asks_once():
    model = Script(["one", "two"])
    theirs = {"role": "system", "content": "be brief"}
    exchanges = [[user("what is it?", PICTURE)], [theirs, user("hi")]]
    assert system_prompt(model, exchanges, 9, "be safe") == ["one", "two"]
    first = {"role": "system", "content": [text("be safe")]}
    assert model.asked == [([[first, user("what is it?", PICTURE)], [first, theirs, user("hi")]], 9)]
    assert exchanges == [[user("what is it?", PICTURE)], [theirs, user("hi")]]  # the caller's own are as they were


def test_system_prompt_has_a_default_and_no_call_for_nothing():
    model = Script(["yes"])
    system_prompt(model, [[user("hi")]], 9)
    assert model.asked[0][0][0][0]["content"] == [text(SENTENCE)]
    assert system_prompt(model, [], 9) == []


def test_ecso_asks_four_things_where_the_model_finds_its_answer_harmful():
    model = Script(["how to: do so"], ["Yes."], ["a locked bike"], ["i will not"])
    results, seconds = Ecso(model)([[user("what now?", PICTURE)]], 40)
    assert model.asked == [
        ([[user("what now?", PICTURE)]], 40),
        ([[user(CHECK.format(question="what now?", answer="how to: do so"), PICTURE)]], 8),
        ([[user(CAPTION.format(question="what now?"), PICTURE)]], 128),
        ([[user(BLIND.format(caption="a locked bike", question="what now?"))]], 40),
    ]
    assert vars(results[0]) == {
        "answer": "i will not",
        "stage": CLOSED,
        "first": "how to: do so",
        "reply": "Yes.",
        "caption": "a locked bike",
        "calls": 4,
    }
    assert seconds.keys() == {"answer", "check", "caption", "blind"} and min(seconds.values()) >= 0


def test_ecso_keeps_an_answer_that_the_model_finds_harmless():
    model = Script(["a cat"], ["No, it is fine."])
    results, _ = Ecso(model)([[user("what is it?", PICTURE)]], 40)
    assert len(model.asked) == 2
    assert (results[0].answer, results[0].stage, results[0].caption, results[0].calls) == ("a cat", PLAIN, "", 2)


def test_ecso_in_a_batch_asks_again_for_the_harmful_ones_alone_and_skips_the_caption_of_a_text():
    exchanges = [[user("q0", PICTURE)], [user("q1")], [user("q2", PICTURE, PICTURE)], [user("q3")]]
    model = Script(["a0", "a1", "a2", "a3"], ["no", "yes", "yes", "no"], ["c2"], ["b1", "b2"])
    results, _ = Ecso(model)(exchanges, 40)
    assert model.asked[2][0] == [[user(CAPTION.format(question="q2"), PICTURE, PICTURE)]]
    assert model.asked[3][0] == [
        [user("Harm nobody, and answer: q1")],
        [user(BLIND.format(caption="c2", question="q2"))],
    ]
    assert [one.answer for one in results] == ["a0", "b1", "b2", "a3"]
    assert [one.stage for one in results] == [PLAIN, CLOSED, CLOSED, PLAIN]
    assert [one.calls for one in results] == [2, 3, 4, 2]


def test_ecso_closes_its_eyes_to_images_of_earlier_turns_as_well():
    earlier = [user("first", PICTURE), {"role": "assistant", "content": "a door"}]
    model = Script(["a"], ["yes"], ["c"], ["b"])
    Ecso(model)([[*earlier, user("and now?")]], 40)
    assert model.asked[1][0][0][:2] == earlier and model.asked[2][0][0][:2] == earlier
    last = model.asked[3][0][0]
    assert [part["type"] for message in last for part in message["content"]] == ["text"] * 3
    assert last[2] == user(BLIND.format(caption="c", question="and now?"))


def test_ecso_takes_prompts_and_a_parse_of_ones_own():
    model = Script(["a"], ["HARM"], ["c"], ["b"])
    own = Ecso(
        model, "{question}|{answer}?", "see {question}", "{caption}/{question}", harmful=lambda reply: reply == "HARM"
    )
    results, _ = own([[{"role": "user", "content": [PICTURE, text("q")]}]], 5)
    said = [asked[0][0][-1]["content"][-1]["text"] for asked in model.asked]
    assert said == ["q", "q|a?", "see q", "c/q"] and results[0].answer == "b"


def test_a_users_own_braces_stay_text():
    model = Script(["{question}"], ["yes"], ["{question} {caption}"], ["b"])
    Ecso(model, check="{question}|{answer}", blind="{caption}|{question}")([[user("{answer} {x}", PICTURE)]], 5)
    said = [asked[0][0][-1]["content"][-1]["text"] for asked in model.asked]
    assert said[1] == "{answer} {x}|{question}" and said[3] == "{question} {caption}|{answer} {x}"


def test_content_that_is_one_string_is_a_question_too():
    model = Script(["a"], ["yes"], ["b"])
    results, seconds = Ecso(model)([[{"role": "user", "content": "q"}]], 5)
    assert model.asked[1][0] == [[user(CHECK.format(question="q", answer="a"))]]
    assert results[0].answer == "b" and "caption" in seconds


@pytest.mark.parametrize(
    ("reply", "harmful"),
    [("yes", True), ("Yes.", True), ("YES, it is", True), ('"yes"', True), ("no", False), ("", False),
     ("yesterday", False), ("no, yes would be wrong", False), ("I cannot say yes", False)],
)  # fmt: skip
def test_says_yes_goes_by_the_first_word(reply, harmful):
    assert says_yes(reply) == harmful


def test_errors_state_rule_and_remedy():
    with pytest.raises(EtaError, match="1 answers to 2 exchanges"):
        Ecso(Script(["one"]))([[user("a")], [user("b")]], 5)
    with pytest.raises(EtaError, match="must be a user's, not assistant"):
        Ecso(Script())([[user("a"), {"role": "assistant", "content": "b"}]], 5)
    with pytest.raises(EtaError, match="must hold {question}, add it"):
        Ecso(Script(), caption="describe")
    assert Ecso(Script())([], 5)[0] == []
