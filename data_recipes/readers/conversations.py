"""Conversation: the turns of a LLaVA-like row, whatever its authors call the roles and wherever they put `<image>`."""

from __future__ import annotations

import re

from data_recipes.readers import files
from data_recipes.readers.tables import shown
from safety_modules.sample import DataError, Turn

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = re.compile(r"\s*<image>\s*")


def turns(conversation: object, images: int) -> tuple[Turn, ...]:
    """User and assistant in alternation, without placeholders: the images always stand before the first text.

    A row without a single `<image>`, with one that lacks its line end, or with too many is read alike; only a placeholder
    without any image is an error, because then an image is missing.

    Args:
        conversation: list of {"from", "value"} or {"role", "content"}.
        images: that the row names.

    Raises:
        DataError: a role is unknown, an answer is missing, or the order is not user, assistant.
    """
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"conversations {shown(conversation)} must be a list of turns; fill it in")
    found = []
    for turn in conversation:
        role, value = _turn(turn)
        if role != "system" or found:  # a system sentence in front is the template's business
            found.append(Turn(role, clean(value, images)))
    if [turn.role for turn in found] != ["user", "assistant"] * (len(found) // 2) or not found:
        raise DataError(
            f"roles are {[turn.role for turn in found]}; they must alternate user, assistant, and end with an answer"
        )
    if not found[-1].text:
        raise DataError("the last answer is empty; fill it in, or remove the row")
    return tuple(found)


def clean(value: str, images: int) -> str:
    """A text without image placeholders."""
    if "<image>" not in value:
        return value.strip()
    if not images:
        raise DataError("has <image> in its text and names no image; add the image, or remove the placeholder")
    return PLACEHOLDER.sub("\n", value).strip()


def _turn(turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise DataError(f"turn {shown(turn)} must be an object with from and value")
    name, value = (turn.get("from", turn.get("role")), turn.get("value", turn.get("content")))
    role = ROLES.get(str(name).lower())
    if role is None:
        raise DataError(f"role {shown(name)} of a turn is unknown; valid: {', '.join(ROLES)}, in capitals or not")
    if not isinstance(value, str):
        raise DataError(f"text {shown(value)} of a turn must be a text")
    return role, files.text({"text": value}, "text")
