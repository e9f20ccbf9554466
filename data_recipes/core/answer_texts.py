"""Texts: questions and answers for rows that have none, composed of parts so that a model cannot learn one sentence by heart."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from data_recipes.core.splits import share
from data_recipes.readers.tables import shown
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy, nearest

FOLDER = Path(__file__).parents[1] / "texts"
KINDS = ("safe", "careful", "limited", "refuse")  # of answers, by level
KEYS = ("questions", "image", "text", "subjects", "reasons", "answers")
UNKNOWN = re.compile(r"\{(?!(what|hint|reason)\})[^}]*\}?")


@dataclass(frozen=True)
class Texts:
    """Questions about an image, and answers by type and level, in one language.

    A taxonomy's own `questions` and `answers` are used where it has them.

    Attributes:
        parts: what the language's file holds.
    """

    taxonomy: Taxonomy
    parts: dict = field(repr=False)

    @classmethod
    def of(cls, taxonomy: Taxonomy, language: str) -> Texts:
        """Args: language: name of a file of data_recipes/texts, or a path of the user's own.

        Raises:
            DataError: there is no such language, or its file lacks something.
        """
        name = str(language)  # YAML reads `no` as false
        path = Path(name).expanduser() if "/" in name or name.endswith(".yaml") else FOLDER / f"{name}.yaml"
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        if not path.is_file():
            raise DataError(
                f"language {language!r}; {nearest(name, known)}; or give the path of a file like {FOLDER}/en.yaml"
            )
        try:
            parts = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from error
        _check(path, parts)
        return cls(taxonomy, parts)

    def question(self, key: str) -> str:
        """A question about an image, chosen by the hash of a key."""
        return _choose(f"question {key}", self.taxonomy.questions or self.parts["questions"])

    def answer(self, risk_type: str, risk_level: int, key: str, image: bool = True) -> str:
        """An answer to an exchange of this label, chosen by the hash of a key.

        Args: image: whether the exchange has one; without, the answer speaks of the request.
            To a harmless request there is nothing to say in general: "".
        """
        own = self.taxonomy.answers(risk_type, risk_level)
        if own:
            return _choose(f"answer {key}", own)
        if not risk_level and not image:
            return ""
        slots = self.parts["answers"][self._kind(risk_level)]
        sentence = " ".join(_choose(f"answer {place} {key}", slot) for place, slot in enumerate(slots))
        reasons = self.parts["reasons"].get(risk_type) or self.parts["reasons"]["any"]
        hint = self.taxonomy.types[self.taxonomy.type_index(risk_type)].hint
        subject = (self.parts.get("subjects") or {}).get(risk_type) or hint
        for name, value in (
            ("{reason}", _choose(f"reason {key}", reasons)),
            ("{what}", self.parts["image" if image else "text"]),
            ("{hint}", subject),
        ):
            sentence = sentence.replace(name, value)
        return sentence

    def _kind(self, risk_level: int) -> str:
        """A level's kind of answer: by its name, or else by its place; the last one is refused, the first risky one warned of."""
        name = self.taxonomy.level_names[risk_level]
        if name in KINDS:
            return name
        top = len(self.taxonomy.levels) - 1
        if risk_level in (0, top):
            return "refuse" if risk_level else "safe"
        return "careful" if risk_level == 1 else "limited"


def _choose(key: str, texts: tuple[str, ...] | list[str]) -> str:
    return texts[int(share(key) * len(texts))]


def _check(path: Path, parts: object) -> None:
    """Refuse a language's file that lacks a part."""
    if not isinstance(parts, dict):
        raise DataError(f"{path}: must be a mapping with {', '.join(KEYS)}; see {FOLDER}/en.yaml")
    for name in parts:
        if name not in KEYS:
            raise DataError(f"{path}: unknown key {name!r}; {nearest(str(name), list(KEYS))}")
    maps = {name: parts.get(name) or {} for name in ("answers", "reasons", "subjects")}
    for name, value in maps.items():
        if not isinstance(value, dict):
            raise DataError(f"{path}: {name} {shown(value)} must be a mapping; see {FOLDER}/en.yaml")
    kinds = [maps["answers"].get(kind) for kind in KINDS]
    slots = [slot for slots in kinds for slot in (slots if isinstance(slots, list) and slots else [None])]
    lists = [parts.get("questions"), *slots, *maps["reasons"].values()]
    if "any" not in maps["reasons"] or not all(_texts(item) for item in lists):
        raise DataError(
            f"{path}: questions, each slot of answers ({', '.join(KINDS)}) and reasons (one named any) must be texts"
        )
    names = [parts.get("image"), parts.get("text"), *maps["subjects"].values()]
    if not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{path}: image and text must say, and subjects may, what an answer is about, such as 'this image'"
        )
    for text in (*names, *(text for item in lists for text in item)):
        if unknown := UNKNOWN.search(text):
            raise DataError(
                f"{path}: {text!r} has {unknown[0]!r}; a text may hold {{what}}, {{hint}} and {{reason}} alone"
            )


def _texts(item: object) -> bool:
    return isinstance(item, list) and len(item) > 0 and all(isinstance(text, str) and text.strip() for text in item)
