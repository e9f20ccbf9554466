"""Taxonomy: the risk types and levels, their hints, and which (type, level) pairs a label may hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from safety_modules.errors import UserError, check_keys, check_slots, nearest

CLEAN = "clean"
DEFAULT = Path(__file__).with_name("taxonomy.yaml")


class TaxonomyError(UserError):
    """A taxonomy file or a label breaks a rule; the message states the value, the rule and the remedy."""


@dataclass(frozen=True)
class RiskType:
    """One category. `level` is the default level of rows that name the type alone; `hint` is a noun phrase."""

    name: str
    level: int
    hint: str


@dataclass(frozen=True)
class RiskLevel:
    """One degree of risk. Its sentences may have the slot `{hint}`; the safe level has no hint.

    Attributes:
        hint: sentence that the language model reads at inference.
        rewordings: sentences that it also reads in training, so that it learns the meaning and not the wording.
        answers: answers for rows of this level whose data has none.
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
    | clean | 1..   | an error: a degree of risk needs a type             |
    | risky | 0     | an error: a harmless exchange about a risk is clean |

    Source: PSA-VLM section 3 (types, levels). Its release accepts the last two pairs and reads both as "no hint".
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
                "one risky type, and two levels, the first of which is the safe one"
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
        """Build from plain data, such as that of safety_modules/taxonomy.yaml.

        The keys version and questions, and answers and rewordings of a level, are optional; unknown keys are errors.
        """
        check_keys(data, ("version", "types", "levels", "questions"), "taxonomy", TaxonomyError, ("types", "levels"))
        if not isinstance(data["types"], dict) or not isinstance(data["levels"], list):
            raise TaxonomyError("taxonomy: types must be a mapping and levels a list; see safety_modules/taxonomy.yaml")
        types, levels = [], []
        for name, row in data["types"].items():
            check_keys(row, ("level", "hint"), f"type {name!r}", TaxonomyError, ("level", "hint"))
            types.append(RiskType(str(name), row["level"], str(row["hint"])))
        for row in data["levels"]:
            check_keys(row, ("name", "hint", "answers", "rewordings"), "level", TaxonomyError, ("name", "hint"))
            answers, rewordings = (_strings(key, row.get(key, [])) for key in ("answers", "rewordings"))
            for text in (str(row["hint"]), *answers, *rewordings):
                check_slots(text, ("hint",), f"level {row['name']!r}", TaxonomyError)
            levels.append(RiskLevel(str(row["name"]), str(row["hint"]), answers, rewordings))
        questions = _strings("questions", data.get("questions", []))
        return cls(tuple(types), tuple(levels), questions, data.get("version", 1))

    def to_dict(self) -> dict:
        """The inverse of `from_dict`."""
        types = {risk.name: {"level": risk.level, "hint": risk.hint} for risk in self.types}
        levels = [
            {"name": row.name, "hint": row.hint, "answers": list(row.answers), "rewordings": list(row.rewordings)}
            for row in self.levels
        ]
        return {"version": self.version, "types": types, "questions": list(self.questions), "levels": levels}

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
        """Check that a label is in the truth table.

        Raises:
            TaxonomyError: it is not.
        """
        self.type_index(risk_type)
        top = len(self.levels) - 1
        if not isinstance(risk_level, int) or isinstance(risk_level, bool) or not 0 <= risk_level <= top:
            raise TaxonomyError(f"risk_level {risk_level!r} of {risk_type!r} must be a whole number from 0 to {top}")
        if (risk_type == CLEAN) != (risk_level == 0):
            rule = f"{CLEAN!r} goes with level 0 and risky types with 1..{top}"
            clean_remedy = "name its risk_type, or set the level to 0"
            remedy = clean_remedy if risk_type == CLEAN else f"set it to 1..{top}, or label it {CLEAN!r}"
            raise TaxonomyError(f"({risk_type!r}, level {risk_level}): {rule}; {remedy}")

    def default_level(self, risk_type: str) -> int:
        """The level of a row that names its type alone."""
        return self.types[self.type_index(risk_type)].level

    def hint(self, risk_type: str, risk_level: int) -> str:
        """The sentence that warns the language model of a risk; empty for a clean exchange.

        Source: PSA-VLM section 3.4 (a hint chosen by level and type); the wording is our own.
        """
        return self.hints(risk_type, risk_level)[0]

    def hints(self, risk_type: str, risk_level: int) -> list[str]:
        """The hint and its rewordings."""
        self.check(risk_type, risk_level)
        level = self.levels[risk_level]
        return self._fill(risk_type, (level.hint, *level.rewordings))

    def answers(self, risk_type: str, risk_level: int) -> list[str]:
        """Answers to an exchange of this label, for data that has none; may be empty."""
        self.check(risk_type, risk_level)
        return self._fill(risk_type, self.levels[risk_level].answers)

    def _fill(self, risk_type: str, sentences: tuple[str, ...]) -> list[str]:
        subject = self.types[self.type_index(risk_type)].hint
        return [sentence.replace("{hint}", subject) for sentence in sentences]


def _strings(key: str, data: object) -> tuple[str, ...]:
    """A list of strings that are not blank."""
    if not isinstance(data, list) or not all(isinstance(text, str) and text.strip() for text in data):
        raise TaxonomyError(f"taxonomy: {key} must be a list of strings, not {data!r}")
    return tuple(data)
