"""Checks whose messages help: the nearest name, keys of mappings, slots of templates; and how a command ends."""

import pytest

from safety_modules.errors import UserError, check_keys, check_slots, nearest, user_errors_exit


class OwnError(UserError):
    pass


def test_the_nearest_name_comes_before_all_names():
    assert nearest("privcy", ["privacy", "clean"]) == "did you mean 'privacy'? valid names: privacy, clean"
    assert nearest(5, ["privacy"]) == "valid names: privacy"


def test_a_misspelt_key_comes_before_the_missing_one():
    assert check_keys({"a": 1}, ("a", "b"), "file", required=("a",)) == {"a": 1}
    for data, message in (
        ({"hnt": 1}, "^file: unknown key 'hnt'; did you mean 'hint'"),
        ({}, "^file: lacks the key 'hint'; add it"),
        (["hint"], r"^file: \['hint'\] must be a mapping with hint"),
    ):
        with pytest.raises(OwnError, match=message):
            check_keys(data, ("hint", "level"), "file", OwnError, required=("hint",))


@pytest.mark.parametrize("text", ["", "no slot", "{hint}", "{hint}: {what}{hint}", "100 % [sic] $x"])
def test_texts_with_allowed_slots(text):
    check_slots(text, ("hint", "what"), "file")


@pytest.mark.parametrize(
    "text,message",
    [
        ("No {hnt}.", "^file: 'No {hnt}.' has '{hnt}'; a text may hold {hint}, {what} alone$"),
        ("{}", "has '{}'"),
        ("{0}", "has '{0}'"),
        ("{hint.x}", "has '{hint.x}'"),
        ("{hint!r}", "has '{hint!r}'"),
        ("{hint:>9}", "has '{hint:>9}'"),
        ("open {", "'open {' has a brace without its partner"),
        ("close }", "'close }' has a brace without its partner"),
        ("{{hint}}", "has a double brace"),
    ],
)
def test_other_slots_and_braces_are_errors(text, message):
    with pytest.raises(OwnError, match=message):
        check_slots(text, ("hint", "what"), "file", OwnError)


def test_a_user_error_ends_with_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as stop, user_errors_exit():
        raise OwnError("weight 'two' must be a number")
    assert stop.value.code == 2 and capsys.readouterr().err == "error: weight 'two' must be a number\n"
    with pytest.raises(ZeroDivisionError), user_errors_exit():
        1 / 0  # noqa: B018
