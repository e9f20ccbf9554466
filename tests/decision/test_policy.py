import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safety_modules.decision.assessment import Assessment
from safety_modules.decision.policy import Policy
from safety_modules.decision.policy_rule import PolicyError
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
    for case in (
        assessment(insults=0.6, clean=0.4),
        assessment(insults=0.5, privacy=0.3, clean=0.2),
        assessment(clean=1.0),
    ):
        assert part.decide(case) == full.decide(case)


def test_actions_follow_type_and_level():
    policy = Policy.from_dict(
        {"default": {"actions": {"refuse": "refuse"}}, "types": {"politics": {"actions": {"refuse": "allow"}}}},
        TAXONOMY,
    )
    high = (0.0, 0.1, 0.1, 0.8)
    decision = policy.decide(assessment(levels=high, privacy=1.0))
    assert decision.action == "refuse" and decision.hint == "" and "private data" in policy.refusal(decision)
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
        ({"default": {"threshold": 50}}, "threshold 50 is a probability"),
        ({"default": {"enabled": "yes"}}, "enabled 'yes' must be true or false"),
        ({"default": {"actions": {"refuse": "block"}}}, "unknown action 'block'"),
        ({"default": {"actions": {"high": "hint"}}}, "unknown key 'high'"),
        ({"types": {"clean": {}}}, "unknown key 'clean'"),
        ({"default": 3}, "must be a mapping"),
    ],
)
def test_broken_policies_are_named(data, message):
    with pytest.raises(PolicyError, match=message):
        Policy.from_dict(data, TAXONOMY)


def costs(**rows):
    """Costs of actions at safe, careful, limited, refuse."""
    return {action: dict(zip(TAXONOMY.level_names, row)) for action, row in rows.items()}


def test_the_cheapest_action_is_taken_by_expected_cost():
    policy = Policy.from_dict(
        {"default": {"costs": costs(allow=(0, 1, 5, 20), hint=(1, 0, 1, 10), refuse=(4, 3, 1, 0))}}, TAXONOMY
    )
    harmless, mild, grave = (0.97, 0.01, 0.01, 0.01), (0.0, 0.9, 0.05, 0.05), (0.0, 0.0, 0.05, 0.95)
    assert policy.decide(assessment(harmless, privacy=0.01, clean=0.99)).action == "allow"
    assert policy.decide(assessment(mild, privacy=0.9, clean=0.1)).action == "hint"
    decision = policy.decide(assessment(grave, privacy=0.9, clean=0.1))
    assert decision.action == "refuse" and decision.threshold is None and decision.risk_type == "privacy"
    # by hand: p(risk) 0.5, all of it at level limited -> allow 2.5, hint 1.0, refuse 2.5
    assert policy.decide(assessment((0.5, 0, 0.5, 0), privacy=0.5, clean=0.5)).action == "hint"


def test_cost_of_one_type_and_threshold_of_the_others():
    policy = Policy.from_dict(
        {"types": {"privacy": {"costs": costs(allow=(0, 9, 9, 9), refuse=(1, 0, 0, 0))}}}, TAXONOMY
    )
    assert policy.decide(assessment(privacy=0.2, clean=0.8)).action == "refuse"
    assert policy.decide(assessment(insults=0.2, clean=0.8)).action == "allow"


def test_a_type_that_is_off_leaves_the_decision_to_another_that_fires():
    policy = Policy.from_dict({"types": {"privacy": {"enabled": False}}}, TAXONOMY)
    assert (
        policy.decide(assessment(privacy=0.6, insults=0.3, clean=0.1)).action == "base"
    )  # 0.3 of it is insults: below 0.5
    careful = Policy.from_dict({"types": {"privacy": {"enabled": False}, "insults": {"threshold": 0.2}}}, TAXONOMY)
    decision = careful.decide(assessment(privacy=0.6, insults=0.3, clean=0.1))
    assert (decision.action, decision.risk_type, decision.score) == ("hint", "insults", 0.3)
    both = {name: {"enabled": False, "threshold": 0.2} for name in ("privacy", "insults")}
    assert (
        Policy.from_dict({"types": both}, TAXONOMY).decide(assessment(privacy=0.6, insults=0.3, clean=0.1)).action
        == "base"
    )
    obvious = assessment(privacy=0.999, insults=0.0009, clean=0.0001)  # insults: above clean, but negligible
    assert careful.decide(obvious).action == "base"


def test_a_type_that_is_allowed_does_not_hand_over_to_a_negligible_one():
    policy = Policy.from_dict({"types": {"privacy": {"actions": {"limited": "allow"}}}}, TAXONOMY)
    case = assessment(privacy=0.99, insults=0.006, clean=0.004)  # insults are above clean, but negligible
    decision = policy.decide(case)
    assert (decision.action, decision.risk_type, decision.hint) == ("allow", "privacy", "")
    careful = Policy.from_dict(
        {"types": {"privacy": {"actions": {"limited": "allow"}}, "insults": {"threshold": 0.3}}}, TAXONOMY
    )
    both = careful.decide(assessment(privacy=0.6, insults=0.35, clean=0.05))
    assert (both.action, both.risk_type, both.score) == ("hint", "insults", 0.35)


types_and_clean = st.lists(st.floats(0, 1, width=32), min_size=7, max_size=7).filter(lambda row: sum(row) > 0)


@settings(max_examples=200, deadline=None)
@given(
    types_and_clean,
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    st.sampled_from(TAXONOMY.risky_names),
    st.booleans(),
)
def test_switching_one_type_off_changes_no_other_decision(types, levels, risk_type, by_cost):
    base = (
        {"default": {"costs": costs(allow=(0, 1, 5, 20), hint=(1, 0, 1, 10), refuse=(4, 3, 1, 0))}} if by_cost else {}
    )
    case = assessment(tuple(levels), **{name: p / sum(types) for name, p in zip(TAXONOMY.type_names, types)})
    full = Policy.from_dict(base, TAXONOMY).decide(case)
    part = Policy.from_dict({**base, "types": {risk_type: {"enabled": False}}}, TAXONOMY).decide(case)
    assert part == full or full.risk_type == risk_type
    assert part.risk_type != risk_type or part.action == "base"


def test_texts_in_other_languages():
    policy = Policy.from_dict(
        {
            "refusal": "No: {hint}.",
            "languages": {
                "de": {
                    "refusal": "Nein, es geht um {hint}.",
                    "subjects": {"privacy": "private Daten"},
                    "hints": {"limited": "Achtung: {hint}."},
                }
            },
        },
        TAXONOMY,
    )
    case = assessment(privacy=1.0)
    decision = policy.decide(case, "de")
    assert (
        decision.hint == "Achtung: private Daten."
        and policy.refusal(decision, "de") == "Nein, es geht um private Daten."
    )
    assert (
        policy.decide(case).hint == TAXONOMY.hint("privacy", 2)
        and policy.refusal(decision) == "No: private data of a person."
    )
    assert policy.decide(assessment((0, 1, 0, 0), privacy=1.0), "de").hint.endswith(
        "name the risk."
    )  # the taxonomy's wording
    assert Policy.from_dict(policy.to_dict(), TAXONOMY) == policy
    with pytest.raises(PolicyError, match="no language 'fr'"):
        policy.decide(case, "fr")


def test_the_digest_tells_policies_apart():
    one, two = (Policy.from_dict({"default": {"threshold": value}}, TAXONOMY) for value in (0.5, 0.6))
    assert one.digest != two.digest and one.digest == Policy.from_dict(one.to_dict(), TAXONOMY).digest


@pytest.mark.parametrize(
    "data,message",
    [
        ({"budget": 5}, "policy budget 5 is a fraction"),
        ({"default": {"budget": 0.1, "threshold": 0.2}}, "has a threshold and a budget; give one"),
        ({"default": {"costs": {"allow": {}}}}, "costs: has allow alone; add the costs of another"),
        (
            {"default": {"costs": {"allow": {"safe": 0}, "hint": {"safe": 0}}}},
            "costs of 'allow': lacks the key 'careful'",
        ),
        ({"default": {"costs": {"alow": {}}}}, "unknown key 'alow'; did you mean 'allow'"),
        ({"languages": {"de": {"hints": {"high": "x"}}}}, "language 'de', hints: unknown key 'high'"),
        ({"languages": {"de": {"refusal": 3}}}, "3 must be a string"),
        ({"refusal": "No: {hnit}."}, "policy: 'No: {hnit}.' has '{hnit}'; a text may hold {hint} alone"),
        ({"default": {"costs": costs(allow=(0, 1, 2, float("nan")), hint=(0, 1, 2, 3))}}, "nan must be a number"),
        ({"default": {"threshold": True}}, "threshold True is a probability"),
        ({"languages": ["de"]}, r"languages: \['de'\] must be a mapping"),
        ({"languages": {False: {}}}, "must be a mapping of names, as strings"),
        ({"version": True}, "version True must be a whole number"),
        ({"version": [1]}, r"version \[1\] must be a whole number or a string"),
    ],
)
def test_broken_parts_of_a_policy_are_named(data, message):
    with pytest.raises(PolicyError, match=message):
        Policy.from_dict(data, TAXONOMY)
