"""Policy: probabilities -> allow, hint, refuse or base. Pure functions and plain data; no retraining to change it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safety_modules.config_reader import read_yaml_file
from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import Calibration, check_budget
from safety_modules.decision.policy_rule import PolicyError, Rule, read_rule, resolve_threshold
from safety_modules.errors import check_keys, check_slots, nearest
from safety_modules.taxonomy import CLEAN, Taxonomy

REFUSAL = "I'm sorry, I cannot help with this: it involves {hint}."
LENIENT = ("allow", "base")  # actions that neither hint nor refuse
TEXTS = ("refusal", "hints", "subjects")


@dataclass(frozen=True)
class Decision:
    """What to do about one exchange, and why.

    Attributes:
        action: one of ACTIONS.
        risk_type, risk_level: what counts as present; clean and 0 where nothing does.
        hint: the sentence for the system part of the prompt, or "".
        score: of that type, in [0, 1].
        threshold: that the score reached; None where nothing is present, or the cost decided.
    """

    action: str
    risk_type: str = CLEAN
    risk_level: int = 0
    hint: str = ""
    score: float = 0.0
    threshold: float | None = None


@dataclass(frozen=True)
class Policy:
    """A rule for each risk type, and the texts of hints and refusals.

    Source: PSA-VLM section 3.4 chooses a hint by level and type, for the most probable pair, and names a "joint
    condition" of both without a formula. Here each type decides by itself, by threshold or by expected cost, and the
    highest score of those that fire counts: so switching one type off cannot change what another one does.

    Attributes:
        version: the owner's own name of this state of the policy; written to the log.
        texts: language -> {"refusal": sentence, "hints": {level: sentence}, "subjects": {type: noun phrase}}; the slot
            `{hint}` stands for the subject. "" has the texts of no language; what is missing there is the taxonomy's.
    """

    rules: dict[str, Rule]
    version: int | str = 1
    texts: dict[str, dict] = field(default_factory=dict)
    taxonomy: Taxonomy = field(default_factory=Taxonomy.default)

    @classmethod
    def default(cls, taxonomy: Taxonomy) -> Policy:
        """Every type on, threshold 0.5, a hint at every level (as in the paper)."""
        return cls.from_dict({}, taxonomy)

    @classmethod
    def from_yaml(cls, path: str | Path, taxonomy: Taxonomy, calibration: Calibration | None = None) -> Policy:
        """Read a policy file; a PolicyError names the file."""
        data = read_yaml_file(path, PolicyError)
        try:
            return cls.from_dict({} if data is None else data, taxonomy, calibration)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, data: dict, taxonomy: Taxonomy, calibration: Calibration | None = None) -> Policy:
        """Build from plain data; docs/policy.md lists the keys.

        A type's row is laid over `default`, and that over: enabled, threshold 0.5, a hint at every level. `budget`
        at the top is for all types together, whether they are on or off.

        Args:
            calibration: gives a budget its threshold.

        Raises:
            PolicyError: an unknown key or name, a value out of range, or a budget that the calibration cannot give.
        """
        check_keys(data, ("version", "budget", "default", "types", "languages", *TEXTS), "policy", PolicyError)
        version = data.get("version", 1)
        if type(version) not in (int, str):
            raise PolicyError(f"policy version {version!r} must be a whole number or a string")
        types = check_keys(data.get("types", {}), taxonomy.risky_names, "policy types", PolicyError)
        base = Rule(True, 0.5, ("hint",) * (len(taxonomy.levels) - 1))
        if "budget" in data:
            budget = check_budget(data["budget"], "policy budget", PolicyError)
            base = Rule(True, 0.5, base.actions, budget, shared_budget=True)
        default = read_rule("default", data.get("default", {}), base, taxonomy)
        rules = {name: read_rule(name, types.get(name, {}), default, taxonomy) for name in taxonomy.risky_names}
        rules = {name: resolve_threshold(name, rule, calibration) for name, rule in rules.items()}
        languages = data.get("languages", {})
        if not isinstance(languages, dict) or not all(isinstance(name, str) and name for name in languages):
            raise PolicyError(f"policy languages: {languages!r} must be a mapping of names, as strings, to texts")
        texts = {"": {key: data[key] for key in TEXTS if key in data}, **languages}
        for language, row in texts.items():
            _check_texts(f"policy language {language!r}" if language else "policy", row, taxonomy)
        return cls(rules, version, texts, taxonomy)

    def to_dict(self) -> dict:
        """The inverse of `from_dict`."""
        levels, types = self.taxonomy.level_names, {}
        for name, rule in self.rules.items():
            row: dict = {"enabled": rule.enabled, "actions": dict(zip(levels[1:], rule.actions))}
            if not rule.shared_budget:
                row |= {"threshold": rule.threshold} if rule.budget is None else {"budget": rule.budget}
            if rule.costs is not None:
                row["costs"] = {action: dict(zip(levels, costs)) for action, costs in rule.costs.items()}
            types[name] = row
        shared_budgets = [rule.budget for rule in self.rules.values() if rule.shared_budget]
        languages = {language: row for language, row in self.texts.items() if language}
        return {
            "version": self.version,
            **({"budget": shared_budgets[0]} if shared_budgets else {}),
            **self.texts.get("", {}),
            **({"languages": languages} if languages else {}),
            "types": types,
        }

    @property
    def digest(self) -> str:
        """A short hash of the whole content; two policies with the same digest decide alike."""
        thresholds = [rule.threshold for rule in self.rules.values()]
        return hashlib.sha256(json.dumps([self.to_dict(), thresholds], sort_keys=True).encode()).hexdigest()[:12]

    def decide(self, assessment: Assessment, language: str = "") -> Decision:
        """The action for the type with the highest score among those present; if that is off, the base answers.

        Where that neither hints nor refuses, another type still does if its own probability p(type) suffices, in
        place of its score against clean alone. So switching a type off does not change what another type decides.

        Args:
            language: of the hint; "" for none in particular.

        Raises:
            PolicyError: the policy has no such language.
        """
        if language and language not in self.texts:
            raise PolicyError(f"the policy has no language {language!r}; {nearest(language, filter(None, self.texts))}")
        scores = {name: assessment.score(name) for name in self.rules}
        actions = _firing(self.rules, scores, assessment)
        if not actions:
            return Decision("allow")
        winner = max(actions, key=scores.__getitem__)
        action, score = actions[winner] if self.rules[winner].enabled else "base", scores[winner]
        if action in LENIENT:
            others = self._others(winner, assessment)
            winner = max(others, key=assessment.types.__getitem__, default=winner)
            action, score = (others[winner], assessment.types[winner]) if others else (action, score)
        rule, level = self.rules[winner], assessment.degree
        hint = self.hint(winner, level, language) if action == "hint" else ""
        return Decision(action, winner, level, hint, score, rule.threshold if rule.costs is None else None)

    def _others(self, winner: str, assessment: Assessment) -> dict[str, str]:
        """Other types that would hint or refuse on their own probability, on which the winner has no effect."""
        rules = {name: rule for name, rule in self.rules.items() if rule.enabled and name != winner}
        actions = _firing(rules, assessment.types, assessment)
        return {name: action for name, action in actions.items() if action not in LENIENT}

    def hint(self, risk_type: str, risk_level: int, language: str = "") -> str:
        """The sentence for the system part of the prompt."""
        own = self._texts("hints", language).get(self.taxonomy.level_names[risk_level])
        return self._fill(own or self.taxonomy.levels[risk_level].hint, risk_type, language)

    def refusal(self, decision: Decision, language: str = "") -> str:
        """The text of a refusal; the language model is not asked for it."""
        texts = [self.texts.get(name, {}).get("refusal") for name in (language, "")]
        return self._fill(texts[0] or texts[1] or REFUSAL, decision.risk_type, language)

    def _fill(self, sentence: str, risk_type: str, language: str) -> str:
        own = self._texts("subjects", language).get(risk_type)
        return sentence.replace("{hint}", own or self.taxonomy.types[self.taxonomy.type_index(risk_type)].hint)

    def _texts(self, key: str, language: str) -> dict[str, str]:
        """Hints or subjects of a language over those of none in particular."""
        return {**self.texts.get("", {}).get(key, {}), **self.texts.get(language, {}).get(key, {})}


def _firing(rules: Mapping[str, Rule], scores: Mapping[str, float], assessment: Assessment) -> dict[str, str]:
    """Types that count as present -> the action of their rule."""
    actions = {name: rule.action(scores[name], assessment) for name, rule in rules.items()}
    return {name: action for name, action in actions.items() if action is not None}


def _check_texts(place: str, data: object, taxonomy: Taxonomy) -> None:
    """Check that texts are for levels and types of the taxonomy, are not empty, and have no slot but `{hint}`."""
    row = check_keys(data, TEXTS, place, PolicyError)
    hints = check_keys(row.get("hints", {}), taxonomy.level_names[1:], f"{place}, hints", PolicyError)
    subjects = check_keys(row.get("subjects", {}), taxonomy.risky_names, f"{place}, subjects", PolicyError)
    for text in (row.get("refusal", REFUSAL), *hints.values(), *subjects.values()):
        if not isinstance(text, str) or not text.strip():
            raise PolicyError(f"{place}: {text!r} must be a string that is not empty")
        check_slots(text, ("hint",), place, PolicyError)
