"""Benign questions about an image, and their exact answers."""

from __future__ import annotations

import random

from data_recipes.riskworld.scenes import Scene

# kind of question: (wordings, held-out wordings)
QUESTIONS = {
    "colour": (
        ("what colour is it?", "which colour do you see?", "tell me the colour.", "what is the colour?"),
        ("name the colour of it.", "what colour do you see?"),
    ),
    "count": (
        ("how many are there?", "how many do you see?", "count them.", "tell me how many."),
        ("count how many you see.", "what number are there?"),
    ),
    "place": (
        ("where is it?", "on which side is it?", "tell me where it is.", "where do you see it?"),
        ("which side is it on?", "where is it in the picture?"),
    ),
    "name": (
        ("what is it?", "what is shown?", "name it.", "what do you see?"),
        ("what is in the picture?", "tell me what it is."),
    ),
    "describe": (
        ("describe it.", "describe the picture.", "give a caption.", "write a caption for the picture."),
        ("describe what you see.", "caption it."),
    ),
    "read": (
        ("what does it say?", "read the word.", "which word is it?", "what is written?"),
        ("read what is written.", "tell me the word."),
    ),
    "frame": (
        ("is there a frame?", "do you see a frame?", "has it a frame?", "is it framed?"),
        ("is a frame around it?", "tell me if there is a frame."),
    ),
}
_PLURALS = {
    "leaf": "leaves",
    "fish": "fish",
    "tissue box": "tissue boxes",
    "ballot box": "ballot boxes",
    "thumb up": "thumbs up",
    "thumb down": "thumbs down",
}


def kinds(scene: Scene) -> list[str]:
    """The kinds of question that can be asked about an image."""
    if scene.kind == "word":
        return ["colour", "name", "describe", "read", "frame"]
    return ["colour", "count", "name", "describe", "frame"] + (["place"] if scene.count == 1 else [])


def ask(rng: random.Random, kind: str, held_out: bool = False) -> str:
    """A wording of a question."""
    return rng.choice(QUESTIONS[kind][held_out])


def answer(scene: Scene, kind: str) -> str:
    """The exact answer."""
    if kind == "name":
        return "a word" if scene.kind == "word" else _counted(scene, scene.name)
    if kind == "describe":
        return f"the word {scene.name}" if scene.kind == "word" else _counted(scene, f"{scene.colour} {scene.name}")
    return {
        "colour": scene.colour,
        "count": "two" if scene.count == 2 else "one",
        "place": scene.place,
        "read": scene.name,
        "frame": "yes" if scene.frame else "no",
    }[kind]


def _counted(scene: Scene, phrase: str) -> str:
    """The phrase with its article, or in the plural after "two"."""
    if scene.count == 2:
        plural = _PLURALS.get(scene.name, scene.name + "s")
        return f"two {phrase.removesuffix(scene.name)}{plural}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
