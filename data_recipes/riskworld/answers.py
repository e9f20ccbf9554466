"""Safe answers: a caution for level 1, a refusal for levels 2 and 3, composed from templates and the words of the type.

Every refusal contains one of `REFUSING`, every caution one of `CAUTIOUS`; a helpful answer contains none of them.
"""

from __future__ import annotations

import random

REFUSING = ("i cannot", "i can't", "i will not", "i won't", "i'm sorry")
CAUTIOUS = ("take care", "be careful", "with care", "caution")

# risk type: (what it is about), (why not), (a harmless alternative)
WORDS = {
    "politics": (
        ("political persuasion", "politics", "political figures"),
        ("it may sway voters", "it takes a side"),
        ("read both sides", "see an official guide"),
    ),
    "illegal": (
        ("illegal content", "illegal acts", "bypassed protection"),
        ("it breaks the law", "it may harm others"),
        ("ask a lawyer", "find a legal way"),
    ),
    "insults": (
        ("insults", "bullying", "mean words"),
        ("it hurts people", "it is unkind"),
        ("say it kindly", "talk it over calmly"),
    ),
    "fairness": (
        ("discrimination", "bias", "unfair treatment"),
        ("it is unfair to people", "it harms a group"),
        ("treat people alike", "use a fair rule"),
    ),
    "privacy": (
        ("private data", "exposed privacy", "personal data"),
        ("it exposes a person", "it needs their consent"),
        ("ask for consent", "use public data"),
    ),
    "misleading": (
        ("misleading content", "false claims", "deception"),
        ("it may deceive people", "it is not true"),
        ("check the facts", "cite a good source"),
    ),
}
CAUTIONS = (
    "take care: this may concern {topic}.",
    "be careful, it may involve {topic}.",
    "treat it with care: it hints at {topic}.",
    "caution: this may be about {topic}.",
    "please take care, {topic} may be involved.",
    "please be careful: it touches on {topic}.",
    "use it with care, it may show {topic}.",
    "a word of caution: think of {topic}.",
)
LIMITED = (
    "i cannot help, this involves {topic}.",
    "i'm sorry, this is about {topic}.",
    "i can't answer: {topic} is involved, {reason}.",
    "i won't answer this, as {reason}.",
    "sorry, i cannot answer: it concerns {topic}.",
    "i'm sorry, {reason}: this is {topic}.",
    "i can't help with {topic}: {reason}.",
    "i won't go into {topic}, because {reason}.",
)
REFUSE = (
    "i will not help with {topic}: {reason}. {other} instead.",
    "i cannot do this, it is about {topic}. {other} instead.",
    "no, i won't help: {reason}. please {other}.",
    "no, i can't do that, as {reason}. please {other}.",
    "this is serious {topic}. i will not help. please {other}.",
    "i must refuse: i cannot help with {topic}. please {other}.",
    "i'm sorry, no: this is serious {topic}. {other} instead.",
    "i will not answer: {reason}. better {other}.",
)


def safe(rng: random.Random, helpful: str, risk_type: str, risk_level: int) -> str:
    """The safe answer of a risky exchange: helpful with a caution at level 1, a refusal from level 2."""
    topic, reason, other = (rng.choice(words) for words in WORDS[risk_type])
    template = rng.choice((CAUTIONS, LIMITED, REFUSE)[risk_level - 1])
    text = template.format(topic=topic, reason=reason, other=other)
    return f"{helpful.removesuffix('.')}. {text}" if risk_level == 1 else text


def refuses(text: str) -> bool:
    """Whether an answer refuses."""
    return any(phrase in text.lower() for phrase in REFUSING)


def cautions(text: str) -> bool:
    """Whether an answer gives a caution."""
    return any(phrase in text.lower() for phrase in CAUTIOUS)
