"""Captions: true statements about an image, in several wordings, and which other images they are true of.

A caption is true of every image that has the facts it needs: training never separates two images that share a caption.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from data_recipes.riskworld import answers, questions, requests
from data_recipes.riskworld.scenes import Scene
from safety_modules.taxonomy import Taxonomy

UNSAFE, HARMLESS, NEVER = "unsafe", "harmless", "never"  # facts; no image has the last
SENTENCE = "the image contains unsafe content"
_OPENINGS = (
    "the image contains",
    "this image contains",
    "the picture contains",
    "the image shows",
    "there is",
    "a picture with",
)
_UNSAFE = ("unsafe content", "harmful content", "risky content", "dangerous content")
_HARMLESS = ("harmless content", "safe content", "nothing unsafe", "no harmful content", "nothing risky")
_SHOWS = ("the image shows {}", "the image contains {}", "a picture of {}", "there is {}", "{}", "{}.")
# other unsafe things: no image shows them, but a list with them is still a list of unsafe things
_FOREIGN = ("pornography", "violence", "physical harm", "a breach of privacy", "hate", "illegal acts", "weapons")
_LISTS = (" such as ", ", such as ", " like ", ": ")


@dataclass(frozen=True)
class Caption:
    """A text, and the `facts` of an image that make it true."""

    text: str
    needs: frozenset[str]


def facts(scene: Scene) -> frozenset[str]:
    """Everything that captions can say of an image."""
    all_facts = {
        UNSAFE if scene.risk_level else HARMLESS,
        f"type {scene.risk_type}",
        f"kind {scene.kind}",
        f"name {scene.kind} {scene.name}",
        f"colour {scene.colour}",
        f"count {scene.count}",
    }
    if scene.kind == "glyph" and scene.count == 1:
        all_facts.add(f"place {scene.place}")
    return frozenset(all_facts)


def caption(rng: random.Random, scene: Scene, taxonomy: Taxonomy) -> Caption:
    """A caption that is true of the image; one in twenty is the answer to a request, which is true of no image."""
    chance = rng.random()
    if chance < 0.05:
        return _elsewhere(rng)
    if chance < 0.30:
        return _general(rng, scene, taxonomy)
    if chance < 0.65 and scene.risk_level:
        return _of_type(rng, scene, taxonomy) if chance < 0.48 else _safe_sentence(rng, scene)
    return _description(rng, scene)


def _general(rng: random.Random, scene: Scene, taxonomy: Taxonomy) -> Caption:
    """Unsafe or harmless; sometimes with a list of examples, whatever the type."""
    if not scene.risk_level:
        return Caption(f"{rng.choice(_OPENINGS)} {rng.choice(_HARMLESS)}", frozenset({HARMLESS}))
    text = f"{rng.choice(_OPENINGS)} {rng.choice(_UNSAFE)}"
    if rng.random() < 0.4:
        types = rng.sample(taxonomy.risky_names, rng.randint(1, 3))
        things = [_topic(rng, name, taxonomy) for name in types] + rng.sample(_FOREIGN, rng.randint(0, 3))
        rng.shuffle(things)
        text += (
            rng.choice(_LISTS) + ", ".join(things[:-1]) + rng.choice((" or ", ", ")) * (len(things) > 1) + things[-1]
        )
    return Caption(text, frozenset({UNSAFE}))


def _of_type(rng: random.Random, scene: Scene, taxonomy: Taxonomy) -> Caption:
    topic = _topic(rng, scene.risk_type, taxonomy)
    return Caption(rng.choice(_SHOWS).format(topic), frozenset({f"type {scene.risk_type}"}))


def _topic(rng: random.Random, risk_type: str, taxonomy: Taxonomy) -> str:
    """A noun phrase for a type: its words, its hint or its name."""
    hint = taxonomy.types[taxonomy.type_index(risk_type)].hint
    return rng.choice((*answers.WORDS[risk_type][0], hint, hint, risk_type))


def _safe_sentence(rng: random.Random, scene: Scene) -> Caption:
    """A sentence of a caution or refusal, which is about the type."""
    text = answers.safe(rng, "it", scene.risk_type, rng.randint(1, 3)).removeprefix("it. ")
    return Caption(rng.choice(sentences(text)), frozenset({f"type {scene.risk_type}"}))


def _description(rng: random.Random, scene: Scene) -> Caption:
    """What a helpful answer says, alone or in a sentence."""
    name = f"name {scene.kind} {scene.name}"
    count = {f"count {scene.count}"} if scene.kind == "glyph" else set()
    needs = {
        "describe": {name, *count, *({f"colour {scene.colour}"} if scene.kind == "glyph" else ())},
        "name": {name, *count} if scene.kind == "glyph" else {"kind word"},
        "read": {name},
        "colour": {f"colour {scene.colour}"},
        "count": count,
        "place": {f"place {scene.place}"},
    }
    kinds = [kind for kind in questions.kinds(scene) if kind in needs and needs[kind]]
    kind = rng.choice(kinds + ["describe"] * len(kinds))
    text = questions.answer(scene, kind)
    if kind in ("describe", "name"):
        text = rng.choice(_SHOWS).format(text)
    return Caption(text + ("." if rng.random() < 0.2 and not text.endswith(".") else ""), frozenset(needs[kind]))


def _elsewhere(rng: random.Random) -> Caption:
    """A sentence of an answer to a request, which is not about an image."""
    phrases, unsafe = requests.REQUESTS[rng.choice(list(requests.REQUESTS))], rng.random() < 0.5
    phrase = rng.choice(phrases.unsafe if unsafe else phrases.benign)
    return Caption((requests.comply if unsafe else requests.assist)(phrase), frozenset({NEVER}))


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its full stop."""
    return [sentence.strip().rstrip(".") + "." for sentence in text.split(". ") if sentence.strip()]
