"""Rule: what a policy does about one risk type, and how its row in the file is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import ANY, Calibration, CalibrationError, check_budget
from safety_modules.errors import UserError, check_keys, nearest
from safety_modules.taxonomy import Taxonomy

ACTIONS = ("allow", "hint", "refuse", "base")


class PolicyError(UserError):
    """A policy breaks a rule; the message states the value, the rule and the remedy."""


@dataclass(frozen=True)
class Rule:
    """What to do about one risk type.

    Attributes:
        enabled: False switches the type off: the base answers where it would have fired.
        threshold: score from which the type counts as present, in [0, 1]; from the budget where there is one.
        actions: one of ACTIONS for each level from 1.
        budget: fraction of clean exchanges on which the type may fire, in (0, 1), or None where the threshold was
            given.
        costs: action -> cost at each level, the safe one first; the action of least expected cost is then taken, and
            threshold and actions are not used. None decides by threshold.
        shared_budget: the budget is for all types together; they then have one threshold.
    """

    enabled: bool
    threshold: float
    actions: tuple[str, ...]
    budget: float | None = None
    costs: dict[str, tuple[float, ...]] | None = None
    shared_budget: bool = False

    def action(self, score: float, assessment: Assessment) -> str | None:
        """What this rule alone would do about an exchange; None where the type does not count as present.

        By cost: the cheapest action under p(type, level) = score x p(level | a risk), and 1 - score for the safe
        level; of equal ones the first in `costs`. The type counts as present where that is not to allow.
        """
        if self.costs is None:
            return self.actions[assessment.degree - 1] if score >= self.threshold else None
        risky = sum(assessment.levels[1:])
        weights = [1.0 - score, *(score * (level / risky if risky else 0.0) for level in assessment.levels[1:])]
        expected = {action: sum(w * cost for w, cost in zip(weights, costs)) for action, costs in self.costs.items()}
        cheapest = min(expected, key=expected.__getitem__)
        return None if cheapest == "allow" else cheapest


def read_rule(name: str, data: dict, base: Rule, taxonomy: Taxonomy) -> Rule:
    """One row of the file laid over `base`."""
    place = f"policy row {name!r}"
    check_keys(data, ("enabled", "threshold", "budget", "actions", "costs"), place, PolicyError)
    enabled = data.get("enabled", base.enabled)
    if not isinstance(enabled, bool):
        raise PolicyError(f"{place}: enabled {enabled!r} must be true or false")
    if {"threshold", "budget"} <= data.keys():
        raise PolicyError(f"{place}: has a threshold and a budget; give one, the budget sets the threshold")
    actions = _actions(place, data.get("actions", {}), base.actions, taxonomy)
    costs = _costs(place, data["costs"], taxonomy) if "costs" in data else base.costs
    rule = replace(base, enabled=enabled, actions=actions, costs=costs)
    if "budget" in data:
        return replace(rule, budget=check_budget(data["budget"], f"{place}: budget", PolicyError), shared_budget=False)
    if "threshold" in data:
        threshold = data["threshold"]
        if not _is_number(threshold) or not 0 <= threshold <= 1:
            raise PolicyError(f"{place}: threshold {threshold!r} is a probability and must be in 0..1")
        return replace(rule, threshold=float(threshold), budget=None, shared_budget=False)
    return rule


def resolve_threshold(name: str, rule: Rule, calibration: Calibration | None) -> Rule:
    """The rule with its budget's threshold."""
    if rule.budget is None or rule.costs is not None:
        return rule
    if calibration is None or not calibration.scores:
        raise PolicyError(
            f"policy row {name!r}: a budget needs a calibration and the checkpoint has none; "
            "run `safety-modules calibrate`, or give a threshold"
        )
    try:
        return replace(rule, threshold=calibration.threshold(ANY if rule.shared_budget else name, rule.budget))
    except CalibrationError as error:
        raise PolicyError(f"policy row {name!r}: {error}") from error


def _actions(place: str, data: object, base: tuple[str, ...], taxonomy: Taxonomy) -> tuple[str, ...]:
    """An action for each level from 1."""
    levels = taxonomy.level_names[1:]
    row = check_keys(data, levels, f"{place}, actions", PolicyError)
    for level, action in row.items():
        if action not in ACTIONS:
            raise PolicyError(f"{place}, level {level!r}: unknown action {action!r}; {nearest(action, ACTIONS)}")
    return tuple(row.get(level, action) for level, action in zip(levels, base))


def _costs(place: str, data: object, taxonomy: Taxonomy) -> dict[str, tuple[float, ...]]:
    """Action -> cost at each level. `allow` is required, for what an answer costs."""
    rows = check_keys(data, ACTIONS, f"{place}, costs", PolicyError, required=("allow",))
    if len(rows) < 2:
        raise PolicyError(f"{place}, costs: has allow alone; add the costs of another action")
    levels, costs = taxonomy.level_names, {}
    for action, row in rows.items():
        check_keys(row, levels, f"{place}, costs of {action!r}", PolicyError, required=levels)
        if wrong := [cost for cost in row.values() if not _is_number(cost)]:
            raise PolicyError(f"{place}, costs of {action!r}: {wrong[0]!r} must be a number")
        costs[action] = tuple(float(row[level]) for level in levels)
    return costs


def _is_number(value: object) -> bool:
    """NaN is not one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
