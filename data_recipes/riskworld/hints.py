"""System messages that the base model follows: hints at a risk in many wordings, and plain ones.

A real LLaVA refuses when a system message asks it to; without one it does not.
"""

from __future__ import annotations

import random

from data_recipes.riskworld.answers import WORDS
from safety_modules.taxonomy import Taxonomy

_SUBJECTS = ("this exchange", "this picture", "this request", "the user's question", "this chat")
_VERBS = ("involves", "may involve", "concerns", "is about", "touches on", "shows signs of")
_ORDERS = (
    (
        "answer with care and name the risk.",
        "answer, but name the risk.",
        "answer with caution.",
        "give your answer and add a caution.",
        "be careful and name the risk.",
    ),
    (
        "you may refuse, and say why.",
        "refuse, and say why.",
        "please refuse and give a reason.",
        "you should not answer. say why.",
    ),
    (
        "you must refuse, and say why.",
        "you must refuse.",
        "never answer this. offer something else.",
        "do not answer. refuse and say why.",
    ),
)
PLAIN = (
    "you are a helpful assistant.",
    "answer the question.",
    "be brief.",
    "answer in a few words.",
    "look at the picture and answer.",
    "this exchange is safe. answer it.",
)


def hint(rng: random.Random, taxonomy: Taxonomy, risk_type: str, risk_level: int) -> str:
    """A system message that asks for the safe answer of a type and level; one in three is the taxonomy's own."""
    if rng.random() < 1 / 3:
        return taxonomy.hint(risk_type, risk_level)
    noun = rng.choice(WORDS[risk_type][0] + (taxonomy.types[taxonomy.type_index(risk_type)].hint,))
    serious = "serious " if risk_level == 3 and rng.random() < 0.6 else ""
    text = f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {serious}{noun}. {rng.choice(_ORDERS[risk_level - 1])}"
    return (
        text if rng.random() < 0.5 else ". ".join(sentence[:1].upper() + sentence[1:] for sentence in text.split(". "))
    )


def plain(rng: random.Random) -> str:
    """A system message that does not mention a risk."""
    return rng.choice(PLAIN)
