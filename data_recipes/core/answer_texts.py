"""AnswerTexts: questions and answers for rows that have none, in many wordings so that none is learned by heart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_recipes.core.splits import hash_fraction
from safety_modules.config import ConfigError
from safety_modules.config_reader import parse, read_yaml_file
from safety_modules.errors import check_slots, nearest
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy

FOLDER = Path(__file__).parents[1] / "texts"
KINDS = ("safe", "careful", "limited", "refuse")  # of answers, by level
SLOTS = ("what", "hint", "reason")


@dataclass(frozen=True)
class LanguageFile:
    """The parts of texts in one language, as its YAML holds them."""

    image: str  # for {what}: "this image"
    text: str  # for {what} where there is no image: "this request"
    questions: list[str]
    answers: dict[str, list[list[str]]]  # kind -> slots of an answer, each a list of texts of which one is used
    reasons: dict[str, list[str]]  # risk type, or "any" -> texts for {reason}
    subjects: dict[str, str] | None = None  # risk type -> noun phrase for {hint}, in place of the taxonomy's

    def __post_init__(self) -> None:
        slots = [slot for kind in KINDS for slot in self.answers.get(kind) or [[]]]
        lists = [self.questions, self.reasons.get("any", []), *slots, *self.reasons.values()]
        if not all(texts and all(text.strip() for text in texts) for texts in lists):
            raise DataError(
                f"questions, each slot of answers ({', '.join(KINDS)}) and reasons (one named any) must be texts, "
                "at least one and none of them blank"
            )
        subjects = (self.subjects or {}).values()
        for text in (self.image, self.text, *subjects, *(text for texts in lists for text in texts)):
            check_slots(text, SLOTS, "texts", DataError)


@dataclass(frozen=True)
class AnswerTexts:
    """Questions about an image, and answers by type and level, in one language.

    A taxonomy's own `questions` and `answers` are used where it has them.
    """

    taxonomy: Taxonomy
    parts: LanguageFile = field(repr=False)

    @classmethod
    def load(cls, taxonomy: Taxonomy, language: str) -> AnswerTexts:
        """Args: language: name of a file of data_recipes/texts, or a path of the user's own.

        Raises:
            DataError: there is no such language, or its file lacks something.
        """
        name = str(language)  # YAML reads `no` as false
        path = Path(name).expanduser() if "/" in name or name.endswith(".yaml") else FOLDER / f"{name}.yaml"
        if not path.is_file():
            names = sorted(file.stem for file in FOLDER.glob("*.yaml"))
            raise DataError(
                f"language {language!r}; {nearest(name, names)}; or give the path of a file like {FOLDER}/en.yaml"
            )
        try:
            return cls(taxonomy, parse(LanguageFile, read_yaml_file(path), str(path)))
        except ConfigError as error:
            raise DataError(f"{error}; see {FOLDER}/en.yaml") from error

    def question(self, key: str) -> str:
        """A question about an image, chosen by the hash of a key."""
        return _choose(f"question {key}", self.taxonomy.questions or self.parts.questions)

    def answer(self, risk_type: str, risk_level: int, key: str, image: bool = True) -> str:
        """An answer to an exchange of this label, chosen by the hash of a key.

        Args:
            image: whether the exchange has one; without, the answer is about the request, and one to a harmless request
                is "", because it depends on what is asked.
        """
        if own := self.taxonomy.answers(risk_type, risk_level):
            return _choose(f"answer {key}", own)
        if not risk_level and not image:
            return ""
        parts = self.parts
        slots = parts.answers[self._kind(risk_level)]
        sentence = " ".join(_choose(f"answer {place} {key}", slot) for place, slot in enumerate(slots))
        reasons = parts.reasons.get(risk_type) or parts.reasons["any"]
        hint = self.taxonomy.types[self.taxonomy.type_index(risk_type)].hint
        for slot, value in (
            ("{reason}", _choose(f"reason {key}", reasons)),
            ("{what}", parts.image if image else parts.text),
            ("{hint}", (parts.subjects or {}).get(risk_type) or hint),
        ):
            sentence = sentence.replace(slot, value)
        return sentence

    def _kind(self, risk_level: int) -> str:
        """A level's kind of answer: by its name, else by its place; the first risky level warns, the last refuses."""
        name = self.taxonomy.level_names[risk_level]
        if name in KINDS:
            return name
        if risk_level in (0, len(self.taxonomy.levels) - 1):
            return "refuse" if risk_level else "safe"
        return "careful" if risk_level == 1 else "limited"


def _choose(key: str, texts: tuple[str, ...] | list[str]) -> str:
    return texts[int(hash_fraction(key) * len(texts))]
