"""Texts for rows that have none."""

from collections import Counter
from math import prod

import pytest
import yaml

from data_recipes.core.answer_texts import FOLDER, KINDS, Texts
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy, TaxonomyError

DEFAULT = Taxonomy.default()
LANGUAGES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
KEYS = [f"image {number}.png" for number in range(2000)]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("risk_type", DEFAULT.type_names)
def test_each_type_and_level_has_200_answers_and_none_is_too_frequent(language, risk_type):
    texts = Texts.of(DEFAULT, language)
    for level in [0] if risk_type == "clean" else [1, 2, 3]:
        drawn = Counter(texts.answer(risk_type, level, key) for key in KEYS)
        assert len(drawn) >= 200 and drawn.most_common(1)[0][1] < 0.05 * len(KEYS)
        assert not any(mark in answer for answer in drawn for mark in "{}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_20_questions_and_the_slots_of_each_kind_give_200_answers(language):
    texts = Texts.of(DEFAULT, language)
    assert len({texts.question(key) for key in KEYS}) >= 20
    for kind in KINDS:
        assert prod(map(len, texts.parts["answers"][kind])) >= 200


@pytest.mark.parametrize("language", LANGUAGES)
def test_2000_questions_hold_no_one_too_often_and_a_key_has_one_text(language):
    texts = Texts.of(DEFAULT, language)
    drawn = Counter(texts.question(key) for key in KEYS)
    assert drawn.keys() == set(texts.parts["questions"]) and drawn.most_common(1)[0][1] < 2 * len(KEYS) / len(drawn)
    again = Texts.of(DEFAULT, language)
    assert all(texts.answer("privacy", 2, key) == again.answer("privacy", 2, key) for key in KEYS[:50])


def test_answers_follow_the_level_and_name_the_risk():
    texts = Texts.of(DEFAULT, "en")
    for key in KEYS[:200]:
        assert all("private data of a person" in texts.answer("privacy", level, key) for level in (1, 2, 3))
        assert "severe" in texts.answer("privacy", 3, key) and "severe" not in texts.answer("privacy", 2, key)
        assert "image" not in texts.answer("privacy", 3, key, image=False)
    assert texts.answer("clean", 0, "x", image=False) == ""


@pytest.mark.parametrize(
    "count, kinds", [(2, "safe refuse"), (3, "safe careful refuse"), (5, "safe careful limited limited refuse")]
)
def test_other_taxonomies_get_the_kind_of_answer_by_the_place_of_the_level(count, kinds):
    levels = [{"name": f"L{number}", "hint": "" if not number else "h {hint}"} for number in range(count)]
    taxonomy = Taxonomy.from_dict(
        {"types": {"knife": {"level": 1, "hint": "a knife"}, "clean": {"level": 0, "hint": ""}}, "levels": levels}
    )
    texts = Texts.of(taxonomy, "en")
    assert [texts._kind(level) for level in range(count)] == kinds.split()
    assert "a knife" in texts.answer("knife", count - 1, "k")
    for level in range(1, count):
        drawn = {texts.answer("knife", level, key) for key in KEYS[:1000]}
        assert len(drawn) >= 200 and not any(mark in answer for answer in drawn for mark in "{}")


def test_names_of_levels_come_before_their_place():
    levels = [{"name": name, "hint": "h"} for name in ("none", "limited", "careful")]
    types = {"knife": {"level": 1, "hint": "a knife"}, "clean": {"level": 0, "hint": ""}}
    texts = Texts.of(Taxonomy.from_dict({"types": types, "levels": levels}), "en")
    assert [texts._kind(level) for level in range(3)] == ["safe", "limited", "careful"]


def test_a_taxonomys_own_texts_are_used_where_it_has_them():
    own = DEFAULT.to_dict() | {"questions": ["Eh?"]}
    own["levels"][2]["answers"] = ["No {hint}."]
    texts = Texts.of(Taxonomy.from_dict(own), "en")
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
        return Texts.of(DEFAULT, str(path))

    assert of(questions=["Quoi?"]).question("k") == "Quoi?"
    for changes, reason in (
        ({"questions": []}, "questions, each slot of answers"),
        ({"questions": 5}, "questions, each slot of answers"),
        ({"questions": ["a", " "]}, "questions, each slot of answers"),
        ({"answers": 5}, "answers 5 must be a mapping"),
        ({"answers": {**parts["answers"], "safe": 5}}, "each slot of answers"),
        ({"answers": {**parts["answers"], "safe": "abc"}}, "each slot of answers"),
        (
            {"answers": {**parts["answers"], "refuse": [["No {hnt}."]]}},
            "'No {hnt}.' has '{hnt}'; a text may hold {what}",
        ),
        ({"reasons": {"any": ["open {"]}}, "'open {' has '{'"),
        ({"reasons": ["any"]}, r"reasons \['any'\] must be a mapping"),
        ({"reasons": {"any": ["x"], "privacy": None}}, "reasons .one named any. must be texts"),
        ({"subjects": ["x"]}, r"subjects \['x'\] must be a mapping"),
        ({"subjects": {"privacy": 5}}, "image and text must say, and subjects may"),
        ({"text": 5}, "image and text must say"),
        ({"answers": {"safe": [["a"]]}}, "each slot of answers"),
        ({"reasons": {"politics": ["x"]}}, "one named any"),
        ({"image": None}, "image and text must say"),
        ({"answer": {}}, "unknown key 'answer'; did you mean 'answers'"),
    ):
        with pytest.raises(DataError, match=reason):
            of(**changes)
    assert "a spy" in of(subjects={"privacy": "a spy"}).answer("privacy", 3, "k")
    assert "private data" in of(subjects=None).answer("privacy", 3, "k")
    for text, reason in (("{", "cannot be read as YAML"), ("- a", "must be a mapping with questions, image")):
        path.write_text(text)
        with pytest.raises(DataError, match=f"own.yaml: {reason}"):
            Texts.of(DEFAULT, str(path))


def test_a_language_is_a_name_or_a_path_also_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text((FOLDER / "de.yaml").read_text())
    assert Texts.of(DEFAULT, "~/own.yaml").parts == Texts.of(DEFAULT, "de").parts
    for name in ("enn", False, "", "~/none.yaml", "../en", str(tmp_path)):
        with pytest.raises(
            DataError, match=f"language {name!r}; .*valid names: de, en; or give the path of a file like"
        ):
            Texts.of(DEFAULT, name)
    with pytest.raises(DataError, match="did you mean 'en'"):
        Texts.of(DEFAULT, "enn")
