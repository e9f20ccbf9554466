import pytest

from safety_modules.assessment import Assessment
from safety_modules.policy import Policy
from safety_modules.rule import PolicyError
from safety_modules.taxonomy import Taxonomy

TAXONOMY = Taxonomy.default()


def assessment(levels=(0.1, 0.2, 0.6, 0.1), **types):
    return Assessment({name: types.get(name, 0.0) for name in TAXONOMY.type_names}, levels)


def test_the_default_hints_from_an_even_chance():
    policy = Policy.default(TAXONOMY)
    decision = policy.decide(assessment(privacy=0.5, clean=0.5))
    assert (decision.action, decision.risk_type, decision.risk_level) == ("hint", "privacy", 2)
    assert decision.hint == TAXONOMY.hint("privacy", 2)
    assert policy.decide(assessment(privacy=0.49, clean=0.51)).action == "allow"


def test_risk_split_between_two_types_still_fires():
    assert Policy.default(TAXONOMY).decide(assessment(privacy=0.35, insults=0.4, clean=0.25)).risk_type == "insults"


def test_the_level_is_never_safe_once_a_type_fires():
    assert Policy.default(TAXONOMY).decide(assessment(levels=(0.9, 0.06, 0.03, 0.01), privacy=1.0)).risk_level == 1


def test_switching_a_type_off_leaves_the_others_alone():
    full = Policy.default(TAXONOMY)
    part = Policy.from_dict({"types": {"privacy": {"enabled": False}}}, TAXONOMY)
    assert part.decide(assessment(privacy=0.9, clean=0.1)).action == "base"
    for case in (assessment(insults=0.6, clean=0.4), assessment(insults=0.5, privacy=0.3, clean=0.2), assessment(clean=1.0)):
        assert part.decide(case) == full.decide(case)


def test_actions_follow_type_and_level():
    policy = Policy.from_dict(
        {"default": {"actions": {"refuse": "refuse"}}, "types": {"politics": {"actions": {"refuse": "allow"}}}}, TAXONOMY
    )
    high = (0.0, 0.1, 0.1, 0.8)
    decision = policy.decide(assessment(levels=high, privacy=1.0))
    assert decision.action == "refuse" and decision.hint == "" and "private data" in policy.refuse(decision)
    assert policy.decide(assessment(levels=high, politics=1.0)).action == "allow"


def test_thresholds_are_per_type():
    policy = Policy.from_dict({"types": {"privacy": {"threshold": 0.9}}}, TAXONOMY)
    assert policy.decide(assessment(privacy=0.8, clean=0.2)).action == "allow"
    assert policy.decide(assessment(insults=0.8, clean=0.2)).action == "hint"


def test_round_trip_and_file(tmp_path):
    policy = Policy.from_dict({"types": {"privacy": {"threshold": 0.9, "actions": {"careful": "allow"}}}}, TAXONOMY)
    assert Policy.from_dict(policy.to_dict(), TAXONOMY) == policy
    (tmp_path / "p.yaml").write_text("types: {privcy: {}}", encoding="utf-8")
    with pytest.raises(PolicyError, match="p.yaml: policy types: unknown key 'privcy'; did you mean 'privacy'"):
        Policy.from_yaml(tmp_path / "p.yaml", TAXONOMY)
    with pytest.raises(PolicyError, match="nowhere.yaml"):
        Policy.from_yaml(tmp_path / "nowhere.yaml", TAXONOMY)


@pytest.mark.parametrize(
    "data,message",
    [
        ({"tpyes": {}}, "unknown key 'tpyes'; did you mean 'types'"),
        ({"default": {"threshold": 50}}, "threshold 50.0 is a probability"),
        ({"default": {"enabled": "yes"}}, "enabled 'yes' must be true or false"),
        ({"default": {"actions": {"refuse": "block"}}}, "action 'block'"),
        ({"default": {"actions": {"high": "hint"}}}, "unknown key 'high'"),
        ({"types": {"clean": {}}}, "unknown key 'clean'"),
        ({"default": 3}, "must be a mapping"),
    ],
)
def test_broken_policies_are_named(data, message):
    with pytest.raises(PolicyError, match=message):
        Policy.from_dict(data, TAXONOMY)
