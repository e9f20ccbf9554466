import copy

import pytest

from safety_modules.taxonomy import Taxonomy, TaxonomyError

DEFAULT = Taxonomy.default()


def test_the_default_is_the_papers():
    assert DEFAULT.type_names == ["politics", "illegal", "insults", "fairness", "privacy", "misleading", "clean"]
    assert DEFAULT.level_names == ["safe", "careful", "limited", "refuse"]
    assert DEFAULT.default_level("politics") == 3 and DEFAULT.default_level("privacy") == 2
    assert DEFAULT.clean_index == 6


GOOD = [("clean", 0), ("privacy", 1), ("privacy", 3)]
BAD = [("clean", 1), ("privacy", 0), ("privacy", 4), ("privacy", -1), ("privacy", 2.0), ("privacy", True)]


def test_the_truth_table():
    for risk_type, level in GOOD:
        DEFAULT.check(risk_type, level)
    for risk_type, level in BAD:
        with pytest.raises(TaxonomyError, match=str(level)):
            DEFAULT.check(risk_type, level)


def test_an_unknown_type_gets_the_nearest_name():
    with pytest.raises(TaxonomyError, match="'privcy'; did you mean 'privacy'"):
        DEFAULT.type_index("privcy")


def test_hints_name_the_risk():
    assert DEFAULT.hint("clean", 0) == ""
    hints = {DEFAULT.hint("privacy", level) for level in (1, 2, 3)}
    assert len(hints) == 3 and all("private data of a person" in hint for hint in hints)
    assert DEFAULT.answers("privacy", 2) == [], (
        "the default's answers are composed, see data_recipes/core/answer_texts.py"
    )


def test_yaml_round_trip(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(DEFAULT.to_yaml(), encoding="utf-8")
    assert Taxonomy.from_yaml(path) == DEFAULT


def change(edit):
    data = copy.deepcopy(DEFAULT.to_dict())
    edit(data)
    return data


@pytest.mark.parametrize(
    "edit,message",
    [
        (lambda d: d["types"].pop("clean"), "exactly one must be named 'clean'"),
        (lambda d: d.update(typos=1), "unknown key 'typos'; did you mean 'types'"),
        (lambda d: d.pop("levels"), "taxonomy: lacks the key 'levels'"),
        (lambda d: d["types"]["privacy"].pop("hint"), "type 'privacy': lacks the key 'hint'"),
        (lambda d: d["types"]["privacy"].update(level=9), "risk_level 9 of 'privacy'"),
        (lambda d: d["levels"].append(d["levels"][1]), "level 'careful' is named twice"),
        (lambda d: d.update(levels=d["levels"][:1]), "and two levels"),
        (lambda d: d.update(questions="what?"), "questions must be a list of strings"),
        (lambda d: d.update(types=["a"]), "types must be a mapping"),
        (lambda d: d["levels"][1].update(hint="Mind {hnit}."), "level 'careful': 'Mind {hnit}.' has '{hnit}'"),
        (
            lambda d: d["levels"][2].update(answers=["No {."]),
            "level 'limited': 'No {.' has a brace without its partner",
        ),
    ],
)
def test_broken_files_are_named(tmp_path, edit, message):
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_dict(change(edit))


def test_a_missing_or_garbled_file_is_named(tmp_path):
    with pytest.raises(TaxonomyError, match="nowhere.yaml"):
        Taxonomy.from_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(TaxonomyError, match="bad.yaml"):
        Taxonomy.from_yaml(tmp_path / "bad.yaml")
