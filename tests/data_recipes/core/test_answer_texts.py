"""Questions and answers for rows that have none."""

from collections import Counter
from math import prod

import pytest
import yaml

from data_recipes.core.answer_texts import FOLDER, KINDS, AnswerTexts
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy, TaxonomyError

DEFAULT = Taxonomy.default()
LANGUAGES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
KINDS_ALONE = {  # a language whose answers are the names of their kinds
    **{"image": "i", "text": "t", "questions": ["q"], "reasons": {"any": ["r"]}},
    "answers": {kind: [[kind]] for kind in KINDS},
}
KEYS = [f"image {number}.png" for number in range(2000)]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("risk_type", DEFAULT.type_names)
def test_each_type_and_level_has_200_answers_and_none_is_too_frequent(language, risk_type):
    texts = AnswerTexts.load(DEFAULT, language)
    for level in [0] if risk_type == "clean" else [1, 2, 3]:
        drawn = Counter(texts.answer(risk_type, level, key) for key in KEYS)
        assert len(drawn) >= 200 and drawn.most_common(1)[0][1] < 0.05 * len(KEYS)
        assert not any(mark in answer for answer in drawn for mark in "{}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_20_questions_and_the_slots_of_each_kind_give_200_answers(language):
    texts = AnswerTexts.load(DEFAULT, language)
    assert len({texts.question(key) for key in KEYS}) >= 20
    for kind in KINDS:
        assert prod(map(len, texts.parts.answers[kind])) >= 200


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_question_is_too_frequent_and_a_key_has_one_text(language):
    texts = AnswerTexts.load(DEFAULT, language)
    drawn = Counter(texts.question(key) for key in KEYS)
    assert drawn.keys() == set(texts.parts.questions) and drawn.most_common(1)[0][1] < 2 * len(KEYS) / len(drawn)
    again = AnswerTexts.load(DEFAULT, language)
    assert all(texts.answer("privacy", 2, key) == again.answer("privacy", 2, key) for key in KEYS[:50])


def test_answers_follow_the_level_and_name_the_risk():
    texts = AnswerTexts.load(DEFAULT, "en")
    for key in KEYS[:200]:
        assert all("private data of a person" in texts.answer("privacy", level, key) for level in (1, 2, 3))
        assert "severe" in texts.answer("privacy", 3, key) and "severe" not in texts.answer("privacy", 2, key)
        assert "image" not in texts.answer("privacy", 3, key, image=False)
    assert texts.answer("clean", 0, "x", image=False) == ""


def kinds_by_level(taxonomy, folder):
    (folder / "kinds.yaml").write_text(yaml.safe_dump(KINDS_ALONE))
    texts = AnswerTexts.load(taxonomy, str(folder / "kinds.yaml"))
    return [texts.answer("knife" if level else "clean", level, "k") for level in range(len(taxonomy.levels))]


@pytest.mark.parametrize(
    "count, kinds", [(2, "safe refuse"), (3, "safe careful refuse"), (5, "safe careful limited limited refuse")]
)
def test_other_taxonomies_get_the_kind_of_answer_by_the_place_of_the_level(tmp_path, count, kinds):
    levels = [{"name": f"L{number}", "hint": "" if not number else "h {hint}"} for number in range(count)]
    taxonomy = Taxonomy.from_dict(
        {"types": {"knife": {"level": 1, "hint": "a knife"}, "clean": {"level": 0, "hint": ""}}, "levels": levels}
    )
    assert kinds_by_level(taxonomy, tmp_path) == kinds.split()
    texts = AnswerTexts.load(taxonomy, "en")
    assert "a knife" in texts.answer("knife", count - 1, "k")
    for level in range(1, count):
        drawn = {texts.answer("knife", level, key) for key in KEYS[:1000]}
        assert len(drawn) >= 200 and not any(mark in answer for answer in drawn for mark in "{}")


def test_names_of_levels_come_before_their_place(tmp_path):
    levels = [{"name": name, "hint": "h"} for name in ("none", "limited", "careful")]
    types = {"knife": {"level": 1, "hint": "a knife"}, "clean": {"level": 0, "hint": ""}}
    taxonomy = Taxonomy.from_dict({"types": types, "levels": levels})
    assert kinds_by_level(taxonomy, tmp_path) == ["safe", "limited", "careful"]


def test_a_taxonomys_own_texts_are_used_where_it_has_them():
    own = DEFAULT.to_dict() | {"questions": ["Eh?"]}
    own["levels"][2]["answers"] = ["No {hint}."]
    texts = AnswerTexts.load(Taxonomy.from_dict(own), "en")
    assert {texts.question(key) for key in KEYS[:50]} == {"Eh?"}
    assert {texts.answer("privacy", 2, key, image=False) for key in KEYS[:50]} == {"No private data of a person."}
    assert len({texts.answer("privacy", 3, key) for key in KEYS[:50]}) > 20
    with pytest.raises(TaxonomyError, match="'clean' goes with level 0"):
        texts.answer("clean", 1, "k")


def test_a_users_own_language_by_path_and_what_is_wrong_with_it(tmp_path):
    parts = yaml.safe_load((FOLDER / "en.yaml").read_text())
    path = tmp_path / "own.yaml"

    def of(**changes):
        path.write_text(
            yaml.safe_dump({name: value for name, value in {**parts, **changes}.items() if value is not None})
        )
        return AnswerTexts.load(DEFAULT, str(path))

    assert of(questions=["Quoi?"]).question("k") == "Quoi?"
    for changes, reason in (
        ({"questions": []}, "questions, each slot of answers"),
        ({"questions": 5}, "questions: 5 must be a list"),
        ({"questions": ["a", " "]}, "questions, each slot of answers"),
        ({"answers": 5}, "answers: 5 must be a mapping"),
        ({"answers": {**parts["answers"], "safe": 5}}, "answers.safe: 5 must be a list"),
        ({"answers": {**parts["answers"], "safe": "abc"}}, "answers.safe: 'abc' must be a list"),
        (
            {"answers": {**parts["answers"], "refuse": [["No {hnt}."]]}},
            "'No {hnt}.' has '{hnt}'; a text may hold {what}",
        ),
        ({"reasons": {"any": ["open {"]}}, "'open {' has a brace without its partner"),
        ({"reasons": ["any"]}, r"reasons: \['any'\] must be a mapping"),
        ({"reasons": {"any": ["x"], "privacy": None}}, "reasons.privacy: None must be a list"),
        ({"subjects": ["x"]}, r"subjects: \['x'\] must be a mapping"),
        ({"subjects": {"privacy": 5}}, "subjects.privacy: 5 must be a string"),
        ({"text": 5}, "text: 5 must be a string"),
        ({"answers": {"safe": [["a"]]}}, "each slot of answers"),
        ({"reasons": {"politics": ["x"]}}, "one named any"),
        ({"image": None}, "image: is missing"),
        ({"answer": {}}, "answer: unknown key; did you mean 'answers'"),
    ):
        with pytest.raises(DataError, match=reason):
            of(**changes)
    assert "a spy" in of(subjects={"privacy": "a spy"}).answer("privacy", 3, "k")
    assert "private data" in of(subjects=None).answer("privacy", 3, "k")
    for text, reason in (("{", "cannot be read as YAML"), ("- a", r"\['a'\] must be a mapping")):
        path.write_text(text)
        with pytest.raises(DataError, match=f"own.yaml: {reason}"):
            AnswerTexts.load(DEFAULT, str(path))


def test_a_language_is_a_name_or_a_path_also_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text((FOLDER / "de.yaml").read_text())
    assert AnswerTexts.load(DEFAULT, "~/own.yaml").parts == AnswerTexts.load(DEFAULT, "de").parts
    for name in ("enn", False, "", "~/none.yaml", "../en", str(tmp_path)):
        with pytest.raises(
            DataError, match=f"language {name!r}; .*valid names: de, en; or give the path of a file like"
        ):
            AnswerTexts.load(DEFAULT, name)
    with pytest.raises(DataError, match="did you mean 'en'"):
        AnswerTexts.load(DEFAULT, "enn")
