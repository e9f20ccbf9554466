"""Answers whose grade is known by construction: what riskworld's reward model learns from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from data_recipes.riskworld import answers, hints
from data_recipes.riskworld.exchanges import Exchange, exchange
from safety_modules.judges.phrases import PhraseJudge
from safety_modules.taxonomy import CLEAN, Taxonomy

JUDGE = PhraseJudge()
NEUTRAL = [text for text in hints.PLAIN if "safe" not in text] + ["say whether the answer is safe."]  # fit any question
PREFIXES = ("As an AI assistant, ", "As an AI assistant ", "as an ai assistant, ")  # ETA's: neither good nor bad
GOOD, FAIR, SPOILED, UNDECIDED, POOR, BAD = 0.95, 0.8, 0.6, 0.5, 0.2, 0.05  # grades: chance that the answer is good


@dataclass(frozen=True)
class AnswerGroup:
    """Graded answers to one user text.

    Attributes:
        user: the question, after a verdict or a neutral sentence where there is one.
        answers: (answer, grade) pairs: the helpful answer, the safe one (to a clean exchange a needless caution or
            refusal), one that suits another level, and a spoiled one.
        level: of the exchange.
        has_verdict: whether the user text says that the exchange is risky.
        text_tells: whether the text is enough to tell the level: there is a verdict, an unsafe request, or no image.
    """

    user: str
    answers: tuple[tuple[str, float], ...]
    level: int
    has_verdict: bool
    text_tells: bool


def answer_group(seed: int, split: str, index: int, taxonomy: Taxonomy) -> AnswerGroup:
    """The group of a row of the world."""
    row, rng = exchange(seed, split, index), random.Random(f"{seed}/reward/{split}/{index}")
    level, risk_type = row.risk_level, row.risk_type if row.risk_level else rng.choice(taxonomy.risky_names)
    has_verdict = bool(level) and rng.random() < 0.5
    if has_verdict:
        system = _verdict(rng, taxonomy, risk_type, level)
    else:
        system = rng.choice(NEUTRAL) if rng.random() < 0.1 else ""
    safe = row.safe if level else answers.safe(rng, row.helpful, risk_type, rng.randint(1, 3))
    other = answers.safe(rng, row.helpful, risk_type, rng.choice([n for n in (1, 2, 3) if n != level]))
    graded = [(text, grade(text, level)) for text in (row.helpful, safe, other)]
    graded.append(_spoil(rng, row, graded, exchange(seed, split, index + 1)))
    text_tells = has_verdict or row.text_type != CLEAN or row.scene is None
    prefix = rng.choice(PREFIXES) if rng.random() < 0.35 else ""
    user = system + rng.choice((" ", "\n\n") if system else ("", "\n\n")) + row.question
    return AnswerGroup(user, tuple((prefix + text, value) for text, value in graded), level, has_verdict, text_tells)


def grade(answer: str, level: int) -> float:
    """How good a whole answer is to an exchange of this level, by `PhraseJudge`; too much care is the lesser fault."""
    refuses, warns = JUDGE.refuses(answer), JUDGE.warns(answer)
    if level == 0:
        return BAD + 0.05 if refuses else POOR if warns else GOOD
    if JUDGE.unsafe(answer, level):
        return POOR if warns else BAD
    return GOOD if refuses == (level > 1) else FAIR


def _verdict(rng: random.Random, taxonomy: Taxonomy, risk_type: str, level: int) -> str:
    """A sentence that names type and level, in one of many wordings."""
    if rng.random() < 0.4:
        return rng.choice(taxonomy.hints(risk_type, level))
    return hints.hint(rng, taxonomy, risk_type, level)


def _spoil(
    rng: random.Random, row: Exchange, graded: Sequence[tuple[str, float]], other: Exchange
) -> tuple[str, float]:
    """What a search comes across: an answer that is truncated, garbled or another row's; its grade is a bit lower."""
    text, value = rng.choice(graded)
    words, chance = text.split(), rng.random()
    if chance < 0.5:
        return _truncate(rng, text, words, value, row.risk_level)
    if chance < 0.8:
        repeated = [word for word in words for _ in range(rng.randint(1, 3))]
        mixed = rng.sample(words, len(words)) if rng.random() < 0.5 else repeated
        if rng.random() < 0.5:
            mixed.insert(rng.randrange(len(mixed) + 1), rng.choice(other.safe.split()))
        garbled = " ".join(mixed)
        return (text, value) if garbled == text else (garbled, min(value, SPOILED) * 0.7)
    foreign = other.safe if rng.random() < 0.5 else other.helpful
    if foreign in (row.helpful, row.safe):
        return foreign, grade(foreign, row.risk_level)
    limit = SPOILED if row.risk_level else POOR + 0.1  # a refusal is one, whatever it refuses
    return foreign, min(grade(foreign, row.risk_level), limit)


def _truncate(rng: random.Random, text: str, words: list[str], value: float, level: int) -> tuple[str, float]:
    stops = [i + 1 for i in range(len(text)) if text.startswith(". ", i)]
    if stops and rng.random() < 0.5:
        start = text[: rng.choice(stops)]
    else:
        start = " ".join(words[: rng.randint(0, len(words))])
    if not start:
        return start, BAD  # an empty answer helps nobody
    if (value > UNDECIDED) != (grade(start, level) > UNDECIDED):
        return start, UNDECIDED  # what decides it may still come
    return start, value - 0.05 if value > UNDECIDED and start != text else value
