"""Policy: probabilities -> allow, hint or refuse. Pure functions and plain data; no retraining to change it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from safety_modules.assessment import Assessment
from safety_modules.errors import UserError
from safety_modules.taxonomy import CLEAN, Taxonomy, nearest

ACTIONS = ("allow", "hint", "refuse")
REFUSAL = "I'm sorry, I cannot help with this: it involves {hint}."


class PolicyError(UserError):
    """A policy breaks a rule; the message states the value, the rule and the remedy."""


@dataclass(frozen=True)
class Rule:
    """What to do about one risk type.

    Attributes:
        enabled: False switches the type off.
        threshold: score in [0, 1] from which the type counts as present.
        actions: one of ACTIONS for each level from 1.
    """

    enabled: bool
    threshold: float
    actions: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """What to do about one exchange. `risk_type` and `risk_level` are clean and 0 where nothing fires."""

    action: str
    risk_type: str
    risk_level: int
    hint: str = ""


@dataclass(frozen=True)
class Policy:
    """A rule for each risk type, and the sentence of a refusal.

    Source: PSA-VLM section 3.4 chooses a hint by level and type, for the most probable pair. Here a type must reach its
    threshold, and a level may refuse without asking the language model.
    """

    rules: dict[str, Rule]
    refusal: str = REFUSAL
    version: int = 1
    taxonomy: Taxonomy = field(default_factory=Taxonomy.default)

    @classmethod
    def default(cls, taxonomy: Taxonomy) -> Policy:
        """Every type on, threshold 0.5, a hint at every level (as in the paper)."""
        return cls.from_dict({}, taxonomy)

    @classmethod
    def from_yaml(cls, path: str | Path, taxonomy: Taxonomy) -> Policy:
        """Read a policy file; a PolicyError names the file."""
        try:
            return cls.from_dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}, taxonomy)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, PolicyError) as error:
            raise PolicyError(f"{path}: {' '.join(str(error).split())}") from error

    @classmethod
    def from_dict(cls, data: dict, taxonomy: Taxonomy) -> Policy:
        """Build from `{version, refusal, default: {...}, types: {name: {enabled, threshold, actions: {level: action}}}}`.

        A type's row is laid over `default`, and that over: enabled, threshold 0.5, a hint at every level.
        """
        _keys("policy", data, ("version", "refusal", "default", "types"))
        types = data.get("types", {})
        for name in types:
            if name not in taxonomy.risky_names:
                raise PolicyError(f"policy names the type {name!r}; {nearest(name, taxonomy.risky_names)}")
        common = _rule("default", data.get("default", {}), Rule(True, 0.5, ("hint",) * (len(taxonomy.levels) - 1)), taxonomy)
        rules = {name: _rule(name, types.get(name, {}), common, taxonomy) for name in taxonomy.risky_names}
        return cls(rules, str(data.get("refusal", REFUSAL)), data.get("version", 1), taxonomy)

    def to_dict(self) -> dict:
        """The inverse of `from_dict`."""
        types = {
            name: {
                "enabled": rule.enabled,
                "threshold": rule.threshold,
                "actions": {self.taxonomy.level_names[i + 1]: action for i, action in enumerate(rule.actions)},
            }
            for name, rule in self.rules.items()
        }
        return {"version": self.version, "refusal": self.refusal, "types": types}

    def decide(self, assessment: Assessment) -> Decision:
        """The action for the highest score among the types that are on and reach their threshold; else allow."""
        scores = {name: assessment.score(name) for name, rule in self.rules.items() if rule.enabled}
        fired = [name for name, score in scores.items() if score >= self.rules[name].threshold]
        if not fired:
            return Decision("allow", CLEAN, 0)
        risk_type = max(fired, key=scores.__getitem__)
        level = assessment.degree
        action = self.rules[risk_type].actions[level - 1]
        hint = self.taxonomy.hint(risk_type, level) if action == "hint" else ""
        return Decision(action, risk_type, level, hint)

    def refuse(self, decision: Decision) -> str:
        """The text of a refusal that the language model has no part in."""
        return self.refusal.replace("{hint}", self.taxonomy.types[self.taxonomy.type_index(decision.risk_type)].hint)


def _rule(name: str, data: dict, base: Rule, taxonomy: Taxonomy) -> Rule:
    """One row of the file laid over `base`."""
    _keys(f"policy row {name!r}", data, ("enabled", "threshold", "actions"))
    enabled, threshold = data.get("enabled", base.enabled), data.get("threshold", base.threshold)
    if not isinstance(enabled, bool):
        raise PolicyError(f"policy row {name!r}: enabled {enabled!r} must be true or false")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise PolicyError(f"policy row {name!r}: threshold {threshold!r} is a probability and must be in 0..1")
    names, actions = taxonomy.level_names[1:], list(base.actions)
    _keys(f"policy row {name!r}, actions", data.get("actions", {}), tuple(names))
    for level, action in data.get("actions", {}).items():
        if action not in ACTIONS:
            raise PolicyError(f"policy row {name!r}, level {level!r}: action {action!r}; {nearest(str(action), list(ACTIONS))}")
        actions[names.index(level)] = action
    return Rule(enabled, float(threshold), tuple(actions))


def _keys(what: str, data: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is no mapping, or has an unknown key."""
    if not isinstance(data, dict):
        raise PolicyError(f"{what} must be a mapping, not {data!r}")
    for key in data:
        if key not in allowed:
            raise PolicyError(f"{what}: unknown key {key!r}; {nearest(str(key), list(allowed))}")
