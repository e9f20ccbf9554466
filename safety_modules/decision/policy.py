"""Policy: probabilities -> allow, hint, refuse or base. Pure functions and plain data; no retraining to change it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from safety_modules.config_reader import read_yaml
from safety_modules.decision.assessment import Assessment
from safety_modules.decision.calibration import Calibration
from safety_modules.decision.policy_rule import PolicyError, Rule, check_keys, read_rule, resolve, share
from safety_modules.taxonomy import CLEAN, Taxonomy, nearest

REFUSAL = "I'm sorry, I cannot help with this: it involves {hint}."
LENIENT = ("allow", "base")
TEXTS = ("refusal", "hints", "subjects")


@dataclass(frozen=True)
class Decision:
    """What to do about one exchange, and why.

    Attributes:
        action: one of ACTIONS.
        risk_type, risk_level: what counts as present; clean and 0 where nothing does.
        hint: the sentence for the system part, or "".
        score: of that type, in [0, 1].
        threshold: that it reached; None where nothing is present, or the cost decided.
    """

    action: str
    risk_type: str = CLEAN
    risk_level: int = 0
    hint: str = ""
    score: float = 0.0
    threshold: float | None = None

    def to_dict(self) -> dict:
        """Plain values, for a log."""
        return asdict(self)


@dataclass(frozen=True)
class Policy:
    """A rule for each risk type, and the texts of hints and refusals.

    Source: PSA-VLM section 3.4 chooses a hint by level and type, for the most probable pair, and names a "joint condition" of
    both without a formula. Here each type decides by itself, by threshold or by expected cost, and the highest score of those
    that fire counts: so switching one type off cannot change what another one does.

    Attributes:
        version: the owner's own name of this state of the policy; written to the log.
        texts: language -> {"refusal": sentence, "hints": {level: sentence}, "subjects": {type: noun phrase}}; `{hint}` stands
            for the subject. "" holds the texts of no language, what is missing there is the taxonomy's.
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
        try:
            data = read_yaml(Path(path).read_text(encoding="utf-8"))
            return cls.from_dict({} if data is None else data, taxonomy, calibration)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, PolicyError) as error:
            raise PolicyError(f"{path}: {' '.join(str(error).split())}") from error

    @classmethod
    def from_dict(cls, data: dict, taxonomy: Taxonomy, calibration: Calibration | None = None) -> Policy:
        """Build from plain data; docs/policy.md lists the keys.

        A type's row is laid over `default`, and that over: enabled, threshold 0.5, a hint at every level. `budget` at the top
        is for all types together, whether they are on or off.

        Args:
            calibration: gives a budget its threshold.

        Raises:
            PolicyError: an unknown key or name, a value out of range, or a budget that the calibration cannot give.
        """
        check_keys("policy", data, ("version", "budget", "default", "types", "languages", *TEXTS))
        if not isinstance(data.get("version", 1), (int, str)):
            raise PolicyError(f"policy version {data['version']!r} must be a number or a text")
        types = data.get("types", {})
        check_keys("policy types", types, tuple(taxonomy.risky_names))
        levels = len(taxonomy.levels) - 1
        start = Rule(True, 0.5, ("hint",) * levels)
        if "budget" in data:
            start = Rule(True, 0.5, start.actions, share("policy budget", data["budget"]), shared=True)
        common = read_rule("default", data.get("default", {}), start, taxonomy)
        rules = {
            name: resolve(name, read_rule(name, types.get(name, {}), common, taxonomy), calibration)
            for name in taxonomy.risky_names
        }
        check_keys("policy languages", data.get("languages", {}), tuple(data.get("languages", {})))
        texts = {"": {key: data[key] for key in TEXTS if key in data}, **data.get("languages", {})}
        for language, row in texts.items():
            _check_texts(f"policy language {language!r}" if language else "policy", row, taxonomy)
        return cls(rules, data.get("version", 1), texts, taxonomy)

    def to_dict(self) -> dict:
        """The inverse of `from_dict`."""
        types = {}
        for name, rule in self.rules.items():
            row = {"enabled": rule.enabled, "actions": dict(zip(self.taxonomy.level_names[1:], rule.actions))}
            if not rule.shared:
                row |= {"threshold": rule.threshold} if rule.budget is None else {"budget": rule.budget}
            if rule.costs is not None:
                row["costs"] = {
                    action: dict(zip(self.taxonomy.level_names, costs)) for action, costs in rule.costs.items()
                }
            types[name] = row
        texts = {key: value for key, value in self.texts.get("", {}).items()}
        languages = {key: value for key, value in self.texts.items() if key}
        shared = dict([("budget", rule.budget) for rule in self.rules.values() if rule.shared][:1])
        return {
            "version": self.version,
            **shared,
            **texts,
            **({"languages": languages} if languages else {}),
            "types": types,
        }

    @property
    def digest(self) -> str:
        """A short hash of the whole content: two policies with the same one decide alike."""
        thresholds = [rule.threshold for rule in self.rules.values()]
        return hashlib.sha256(json.dumps([self.to_dict(), thresholds], sort_keys=True).encode()).hexdigest()[:12]

    def decide(self, assessment: Assessment, language: str = "") -> Decision:
        """The action for the type with the highest score among those that count as present; if it is off, the base answers.

        Where that neither hints nor refuses, another type still does if its own probability p(type) suffices, in place of its
        score against clean alone. So an exchange that another type decides is decided alike whatever is off.

        Args:
            language: of the hint; "" for none in particular.

        Raises:
            PolicyError: the policy has no such language.
        """
        if language and language not in self.texts:
            known = [name for name in self.texts if name]
            raise PolicyError(f"the policy has no language {language!r}; {nearest(language, known)}")
        scores = {name: assessment.score(name) for name in self.rules}
        present = {name: rule.action(scores[name], assessment) for name, rule in self.rules.items()}
        present = {name: action for name, action in present.items() if action is not None}
        if not present:
            return Decision("allow")
        winner = max(present, key=scores.__getitem__)
        action, score = present[winner] if self.rules[winner].enabled else "base", scores[winner]
        if action in LENIENT:
            others = self._others(winner, assessment)
            winner = max(others, key=assessment.types.__getitem__, default=winner)
            action, score = (others[winner], assessment.types[winner]) if others else (action, score)
        rule, level = self.rules[winner], assessment.degree
        hint = self.hint(winner, level, language) if action == "hint" else ""
        return Decision(action, winner, level, hint, score, rule.threshold if rule.costs is None else None)

    def _others(self, winner: str, assessment: Assessment) -> dict[str, str]:
        """Types but the winner that would hint or refuse on their own probability, which the winner has no part in."""
        rules = {name: rule for name, rule in self.rules.items() if rule.enabled and name != winner}
        actions = {name: rule.action(assessment.types[name], assessment) for name, rule in rules.items()}
        return {name: action for name, action in actions.items() if action not in (None, *LENIENT)}

    def hint(self, risk_type: str, risk_level: int, language: str = "") -> str:
        """The sentence for the system part."""
        own = self._text("hints", language).get(self.taxonomy.level_names[risk_level])
        sentence = own or self.taxonomy.levels[risk_level].hint
        return sentence.replace("{hint}", self._subject(risk_type, language))

    def refuse(self, decision: Decision, language: str = "") -> str:
        """The text of a refusal that the language model has no part in."""
        return (self._text("refusal", language) or REFUSAL).replace(
            "{hint}", self._subject(decision.risk_type, language)
        )

    def _subject(self, risk_type: str, language: str) -> str:
        own = self._text("subjects", language).get(risk_type)
        return own or self.taxonomy.types[self.taxonomy.type_index(risk_type)].hint

    def _text(self, key: str, language: str) -> dict | str:
        """A text of the language over that of none in particular; "" or {} where there is neither."""
        rows = [self.texts.get(name, {}).get(key) for name in ("", language)]
        if key == "refusal":
            return rows[1] or rows[0] or ""
        return {**(rows[0] or {}), **(rows[1] or {})}


def _check_texts(what: str, data: dict, taxonomy: Taxonomy) -> None:
    """Refuse texts for levels and types that are not there, and what is no text."""
    check_keys(what, data, TEXTS)
    check_keys(f"{what}, hints", data.get("hints", {}), tuple(taxonomy.level_names[1:]))
    check_keys(f"{what}, subjects", data.get("subjects", {}), tuple(taxonomy.risky_names))
    for text in (data.get("refusal", "x"), *data.get("hints", {}).values(), *data.get("subjects", {}).values()):
        if not isinstance(text, str) or not text.strip():
            raise PolicyError(f"{what}: {text!r} must be a text")
