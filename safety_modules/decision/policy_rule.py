"""Rule: what a policy does about one risk type, and how its row in the file is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import ANY, Calibration, CalibrationError
from safety_modules.errors import UserError
from safety_modules.taxonomy import Taxonomy, nearest

ACTIONS = ("allow", "hint", "refuse", "base")


class PolicyError(UserError):
    """A policy breaks a rule; the message states the value, the rule and the remedy."""


@dataclass(frozen=True)
class Rule:
    """What to do about one risk type.

    Attributes:
        enabled: False switches the type off: the base answers what would have fired.
        threshold: score from which the type counts as present, 0 to 1; from the budget where there is one.
        actions: one of ACTIONS for each level from 1.
        budget: share of clean exchanges on which the type may fire, or None where the threshold was given.
        shared: the budget is for all types together; they then have one threshold.
        costs: action -> cost at each level, the safe one first; the action of least expected cost is then taken, and threshold
            and actions are not used. None decides by threshold.
    """

    enabled: bool
    threshold: float
    actions: tuple[str, ...]
    budget: float | None = None
    costs: dict[str, tuple[float, ...]] | None = None
    shared: bool = False

    def action(self, score: float, assessment: Assessment) -> str | None:
        """What this rule alone would do about an exchange; None where the type does not count as present.

        By cost: the cheapest action under p(type, level) = score x p(level | a risk), and 1 - score for the safe level; of
        equal ones the first in `costs`. The type counts as present where that is not to allow.
        """
        if self.costs is None:
            return self.actions[assessment.degree - 1] if score >= self.threshold else None
        risky = sum(assessment.levels[1:])
        weights = [1.0 - score, *(score * (level / risky if risky else 0.0) for level in assessment.levels[1:])]
        action = min(self.costs, key=lambda action: sum(w * cost for w, cost in zip(weights, self.costs[action])))
        return None if action == "allow" else action


def read_rule(name: str, data: dict, base: Rule, taxonomy: Taxonomy) -> Rule:
    """One row of the file laid over `base`."""
    what = f"policy row {name!r}"
    check_keys(what, data, ("enabled", "threshold", "budget", "actions", "costs"))
    enabled = data.get("enabled", base.enabled)
    if not isinstance(enabled, bool):
        raise PolicyError(f"{what}: enabled {enabled!r} must be true or false")
    if {"threshold", "budget"} <= data.keys():
        raise PolicyError(
            f"{what}: has a threshold and a budget; give one, the budget's threshold comes from the calibration"
        )
    threshold, budget, shared = base.threshold, base.budget, base.shared
    if "threshold" in data:
        threshold, budget = (
            _number(f"{what}: threshold", data["threshold"], "is a probability and must be in 0..1"),
            None,
        )
        shared = False
        if not 0 <= threshold <= 1:
            raise PolicyError(f"{what}: threshold {threshold!r} is a probability and must be in 0..1")
    if "budget" in data:
        budget, shared = share(f"{what}: budget", data["budget"]), False
    actions = _actions(what, data.get("actions", {}), base.actions, taxonomy)
    costs = _costs(what, data["costs"], taxonomy) if "costs" in data else base.costs
    return Rule(enabled, threshold, actions, budget, costs, shared)


def resolve(name: str, rule: Rule, calibration: Calibration | None) -> Rule:
    """The rule with its budget's threshold."""
    if rule.budget is None or rule.costs is not None:
        return rule
    if calibration is None or not calibration.scores:
        raise PolicyError(
            f"policy row {name!r}: a budget needs a calibration and the checkpoint has none; run scripts.calibrate, or give a "
            "threshold"
        )
    try:
        return replace(rule, threshold=calibration.threshold(ANY if rule.shared else name, rule.budget))
    except CalibrationError as error:
        raise PolicyError(f"policy row {name!r}: {error}") from error


def _actions(what: str, data: dict, base: tuple[str, ...], taxonomy: Taxonomy) -> tuple[str, ...]:
    names, actions = taxonomy.level_names[1:], list(base)
    check_keys(f"{what}, actions", data, tuple(names))
    for level, action in data.items():
        if action not in ACTIONS:
            raise PolicyError(f"{what}, level {level!r}: action {action!r}; {nearest(str(action), list(ACTIONS))}")
        actions[names.index(level)] = action
    return tuple(actions)


def _costs(what: str, data: dict, taxonomy: Taxonomy) -> dict[str, tuple[float, ...]]:
    """Action -> cost at each level. `allow` must be there, for what an answer costs."""
    check_keys(f"{what}, costs", data, ACTIONS)
    if "allow" not in data or len(data) < 2:
        raise PolicyError(
            f"{what}, costs: has {', '.join(data) or 'nothing'}; give the costs of allow and of another action"
        )
    costs = {}
    for action, row in data.items():
        check_keys(f"{what}, costs of {action!r}", row, tuple(taxonomy.level_names))
        for level in taxonomy.level_names:
            if level not in row:
                raise PolicyError(f"{what}, costs of {action!r}: no cost at level {level!r}; add it")
        costs[action] = tuple(
            _number(f"{what}, cost", row[level], "must be a number") for level in taxonomy.level_names
        )
    return costs


def share(what: str, value: object) -> float:
    """A share of clean exchanges, above 0 and below 1."""
    number = _number(what, value, "is a share of clean exchanges and must be above 0 and below 1")
    if not 0 < number < 1:
        raise PolicyError(f"{what} {value!r} is a share of clean exchanges and must be above 0 and below 1")
    return number


def _number(what: str, value: object, rule: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise PolicyError(f"{what} {value!r} {rule}")
    return float(value)


def check_keys(what: str, data: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is no mapping, or has an unknown key."""
    if not isinstance(data, dict):
        raise PolicyError(f"{what} must be a mapping, not {data!r}")
    for key in data:
        if key not in allowed:
            raise PolicyError(f"{what}: unknown key {key!r}; {nearest(str(key), list(allowed))}")
