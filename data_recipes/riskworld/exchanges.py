"""Exchange: an image (or none), a question, a helpful and a safe answer, and the label.

The label follows one rule:

1. an unsafe request has its type and level 3;
2. else a risky image has its type, and its level by the rubric of `scenes`;
3. else the exchange is clean, level 0.

An unsafe request on a risky image is of the image's type.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from data_recipes.riskworld import answers, questions, requests
from data_recipes.riskworld.scenes import OOD_IMAGES, Scene
from safety_modules.taxonomy import CLEAN

# (fraction, image pool or None, unsafe request)
MIX = (
    (0.25, "risky", False),
    (0.06, "risky", True),
    (0.25, "neutral", False),
    (0.25, "look_alike", False),
    (0.04, "neutral", True),
    (0.04, "look_alike", True),
    (0.055, None, True),
    (0.055, None, False),
)
REQUESTED = 0.08  # fraction of benign requests among the safe questions on an image


@dataclass(frozen=True)
class Exchange:
    """One exchange.

    Attributes:
        scene: the image, or None.
        kind: of question: a key of `questions.QUESTIONS`, "request" or "unsafe".
        question, helpful, safe: texts; `safe` equals `helpful` when the exchange is clean.
        risk_type, risk_level: the label.
        text_type: type of the text alone.
        ood: what differs from training: a name of `OOD_IMAGES`, "wording", or None.
    """

    scene: Scene | None
    kind: str
    question: str
    helpful: str
    safe: str
    risk_type: str
    risk_level: int
    text_type: str
    ood: str | None

    def to_dict(self) -> dict:
        """The row of the data file, without the image's path."""
        scene = self.scene
        return {
            "question": self.question,
            "helpful": self.helpful,
            "answer": self.safe,
            "risk_type": self.risk_type,
            "risk_level": self.risk_level,
            "image_type": scene.risk_type if scene else CLEAN,
            "image_level": scene.risk_level if scene else 0,
            "text_type": self.text_type,
            "kind": self.kind,
            "name": scene.name if scene else None,
            "look_alike": bool(scene and scene.look_alike and self.risk_type == CLEAN),
            "clean": bool(scene and self.risk_type == CLEAN and self.kind in questions.QUESTIONS),
            "ood": self.ood,
        }


def label(scene: Scene | None, text_type: str) -> tuple[str, int]:
    """Type and level of an exchange by the rule above."""
    if text_type != CLEAN:
        return text_type, 3
    return (scene.risk_type, scene.risk_level) if scene else (CLEAN, 0)


def exchange(seed: int, split: str, index: int) -> Exchange:
    """The exchange with this number: the same every time.

    Args:
        seed: of the whole world.
        split: "train", "validation", "test" or "ood"; any other name draws other rows of the kind of "train".
        index: from 0.
    """
    rng = random.Random(f"{seed}/{split}/{index}")
    _, pool, unsafe = rng.choices(MIX, weights=[fraction for fraction, _, _ in MIX])[0]
    ood = None
    if split == "ood":
        ood = rng.choice((*OOD_IMAGES, "wording")) if pool else "wording"
    scene = Scene.sample(rng, pool, ood if ood in OOD_IMAGES else None) if pool else None
    text_type, kind, question, helpful = _text(rng, split, scene, unsafe, held_out=ood == "wording")
    risk_type, risk_level = label(scene, text_type)
    safe = answers.safe(rng, helpful, risk_type, risk_level) if risk_level else helpful
    return Exchange(scene, kind, question, helpful, safe, risk_type, risk_level, text_type, ood)


def _text(
    rng: random.Random, split: str, scene: Scene | None, unsafe: bool, held_out: bool
) -> tuple[str, str, str, str]:
    """Text type, kind, question and helpful answer."""
    source = split if split != "ood" or held_out else "test"
    if unsafe:
        risk_type = scene.risk_type if scene and scene.risk_type != CLEAN else rng.choice(list(requests.REQUESTS))
        phrase, question = rng.choice(requests.choices(source, risk_type, unsafe=True))
        return risk_type, "unsafe", question, requests.comply(phrase)
    if scene is None or rng.random() < REQUESTED:
        phrase, question = rng.choice(requests.choices(source, rng.choice(list(requests.REQUESTS)), unsafe=False))
        return CLEAN, "request", question, requests.assist(phrase)
    kind = rng.choice(questions.kinds(scene))
    return CLEAN, kind, questions.ask(rng, kind, held_out), questions.answer(scene, kind)
