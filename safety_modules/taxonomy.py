"""Taxonomy: the risk types and levels, their hints, and which (type, level) pairs a label may hold."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import yaml

from safety_modules.errors import UserError

CLEAN = "clean"
DEFAULT = Path(__file__).with_name("taxonomy.yaml")


class TaxonomyError(UserError):
    """A taxonomy file or a label breaks a rule; the message states the value, the rule and the remedy."""


def nearest(name: str, names: list[str]) -> str:
    """End of an error message: the nearest valid name, then all of them."""
    near = difflib.get_close_matches(str(name), names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"valid names: {', '.join(names)}"


@dataclass(frozen=True)
class RiskType:
    """One category. `level` is the default level of rows that give the type alone; `hint` is a noun phrase."""

    name: str
    level: int
    hint: str


@dataclass(frozen=True)
class RiskLevel:
    """One degree of risk. All sentences have the field `{hint}`; the safe level has no hint.

    `hint` is what the language model is told in use, `rewordings` are what it is told in training as well, so that it learns the
    meaning and not the sentence. `answers` are what a row of this level is answered with where its data has no answer.
    """

    name: str
    hint: str
    answers: tuple[str, ...] = ()
    rewordings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Taxonomy:
    """Risk types and levels, in the order of the head's logits.

    The truth table of a label, stated here once:

    | type  | level | meaning                                             |
    |-------|-------|-----------------------------------------------------|
    | clean | 0     | a clean exchange                                    |
    | risky | 1..   | a risky exchange of that degree                     |
    | clean | 1..   | refused: a degree of risk needs a type              |
    | risky | 0     | refused: a harmless exchange about a risk is clean  |

    Source: PSA-VLM section 3 (types, levels). Its release keeps the last two pairs and reads both as "no hint".
    """

    types: tuple[RiskType, ...]
    levels: tuple[RiskLevel, ...]
    questions: tuple[str, ...] = ()
    version: int = 1

    def __post_init__(self) -> None:
        names = self.type_names
        if names.count(CLEAN) != 1:
            raise TaxonomyError(f"taxonomy types {names}: exactly one must be named {CLEAN!r}; add it with level 0")
        for kind, group in (("type", names), ("level", self.level_names)):
            twice = sorted({name for name in group if group.count(name) > 1})
            if twice:
                raise TaxonomyError(f"taxonomy {kind} {twice[0]!r} is named twice; names are unique, rename one")
        if len(self.types) < 2 or len(self.levels) < 2:
            raise TaxonomyError(
                f"taxonomy has {len(self.types)} types and {len(self.levels)} levels; it needs at least {CLEAN!r} and "
                "one risky type, and at least two levels, the first being the safe one"
            )
        for risk in self.types:
            self.check(risk.name, risk.level)

    @classmethod
    def default(cls) -> Taxonomy:
        """The paper's six types and clean, with four levels."""
        return cls.from_yaml(DEFAULT)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Taxonomy:
        """Read a taxonomy file.

        Raises:
            TaxonomyError: the file is missing, is not YAML or breaks a rule; the message names it.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TaxonomyError(f"{path}: cannot be read as a taxonomy: {' '.join(str(error).split())}") from error
        try:
            return cls.from_dict(data)
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, data: dict) -> Taxonomy:
        """Build from `{version, types: {name: {level, hint}}, questions: [...], levels: [{name, hint, answers, rewordings}]}`.

        version, questions, answers and rewordings are optional; unknown keys are errors.
        """
        _keys("taxonomy", data, required={"types", "levels"}, allowed={"version", "types", "levels", "questions"})
        if not isinstance(data["types"], dict) or not isinstance(data["levels"], list):
            raise TaxonomyError(
                "taxonomy: types must be a mapping of names, levels a list; see safety_modules/taxonomy.yaml"
            )
        types, levels = [], []
        for name, row in data["types"].items():
            _keys(f"type {name!r}", row, required={"level", "hint"}, allowed={"level", "hint"})
            types.append(RiskType(str(name), row["level"], str(row["hint"])))
        for row in data["levels"]:
            _keys("level", row, required={"name", "hint"}, allowed={"name", "hint", "answers", "rewordings"})
            lists = (_texts(key, row.get(key, [])) for key in ("answers", "rewordings"))
            levels.append(RiskLevel(str(row["name"]), str(row["hint"]), *lists))
        return cls(tuple(types), tuple(levels), _texts("questions", data.get("questions", [])), data.get("version", 1))

    def to_dict(self) -> dict:
        """The inverse of `from_dict`."""
        return {
            "version": self.version,
            "types": {risk.name: {"level": risk.level, "hint": risk.hint} for risk in self.types},
            "questions": list(self.questions),
            "levels": [
                {"name": row.name, "hint": row.hint, "answers": list(row.answers), "rewordings": list(row.rewordings)}
                for row in self.levels
            ],
        }

    def to_yaml(self) -> str:
        """The text of a taxonomy file, the inverse of `from_yaml`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @property
    def type_names(self) -> list[str]:
        """Names in the order of `type_logits`."""
        return [risk.name for risk in self.types]

    @property
    def level_names(self) -> list[str]:
        """Names in the order of `level_logits`."""
        return [level.name for level in self.levels]

    @property
    def clean_index(self) -> int:
        """Position of `clean` among the types."""
        return self.type_names.index(CLEAN)

    @property
    def risky_names(self) -> list[str]:
        """All types but clean."""
        return [name for name in self.type_names if name != CLEAN]

    def type_index(self, name: str) -> int:
        """Position of a type in `type_logits`; an unknown name is a TaxonomyError with the nearest valid one."""
        if name not in self.type_names:
            raise TaxonomyError(f"unknown risk_type {name!r}; {nearest(name, self.type_names)}")
        return self.type_names.index(name)

    def check(self, risk_type: str, risk_level: int) -> None:
        """Refuse a label outside the truth table.

        Raises:
            TaxonomyError: with the value, the rule and the remedy.
        """
        self.type_index(risk_type)
        top = len(self.levels) - 1
        if not isinstance(risk_level, int) or isinstance(risk_level, bool) or not 0 <= risk_level <= top:
            raise TaxonomyError(f"risk_level {risk_level!r} of {risk_type!r} must be a whole number from 0 to {top}")
        if (risk_type == CLEAN) != (risk_level == 0):
            name_it = "name its risk_type, or set the level to 0"
            remedy = name_it if risk_type == CLEAN else f"set it to 1..{top}, or label it {CLEAN!r}"
            rule = f"{CLEAN!r} goes with level 0 and risky types with 1..{top}"
            raise TaxonomyError(f"({risk_type!r}, level {risk_level}): {rule}; {remedy}")

    def default_level(self, risk_type: str) -> int:
        """The level of a row that names its type alone."""
        return self.types[self.type_index(risk_type)].level

    def hint(self, risk_type: str, risk_level: int) -> str:
        """The sentence that tells the language model of a risk; empty for a clean exchange.

        Source: PSA-VLM section 3.4 (a hint chosen by level and type); the wording is our own.
        """
        self.check(risk_type, risk_level)
        return self._about(risk_type, self.levels[risk_level].hint)

    def hints(self, risk_type: str, risk_level: int) -> list[str]:
        """The hint and its rewordings."""
        self.check(risk_type, risk_level)
        level = self.levels[risk_level]
        return [self._about(risk_type, sentence) for sentence in (level.hint, *level.rewordings)]

    def answers(self, risk_type: str, risk_level: int) -> list[str]:
        """Wordings to answer an exchange of this label with, where the data has no answer; may be empty."""
        self.check(risk_type, risk_level)
        return [self._about(risk_type, answer) for answer in self.levels[risk_level].answers]

    def _about(self, risk_type: str, sentence: str) -> str:
        return sentence.replace("{hint}", self.types[self.type_index(risk_type)].hint)


def _texts(what: str, data: object) -> tuple[str, ...]:
    """A list of strings, or an error."""
    if not isinstance(data, list) or not all(isinstance(text, str) and text.strip() for text in data):
        raise TaxonomyError(f"taxonomy {what} must be a list of texts, not {data!r}")
    return tuple(data)


def _keys(what: str, data: object, required: set[str], allowed: set[str]) -> None:
    """Refuse a mapping with a missing or an unknown key."""
    if not isinstance(data, dict):
        raise TaxonomyError(f"{what} must be a mapping with {', '.join(sorted(required))}, not {data!r}")
    for key in sorted(required - data.keys()):
        raise TaxonomyError(f"{what} lacks the key {key!r}; add it")
    for key in data.keys() - allowed:
        raise TaxonomyError(f"{what} has an unknown key {key!r}; {nearest(key, sorted(allowed))}")
