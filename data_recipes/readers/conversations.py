"""Conversations: the turns of a LLaVA-like row, whatever its authors call the roles and wherever they put `<image>`."""

from __future__ import annotations

import re

from data_recipes.readers.table_row import checked_text, short_repr
from safety_modules.sample import DataError, Turn

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = re.compile(r"\s*<image>\s*")


def turns(conversation: object, images: int) -> tuple[Turn, ...]:
    """Alternating user and assistant turns without placeholders: images always come before the first text.

    Missing, misplaced and surplus placeholders do not matter; only a placeholder in a row without images is an error,
    because then an image is missing.

    Args:
        conversation: list of {"from", "value"} or {"role", "content"}.
        images: how many the row names.

    Raises:
        DataError: a role is unknown, an answer is missing, or the roles do not alternate user, assistant.
    """
    if not isinstance(conversation, list) or not conversation:
        raise DataError(f"conversations {short_repr(conversation)} must be a list of turns; fill it in")
    result = []
    for item in conversation:
        role, value = _role_and_text(item)
        if role != "system" or result:  # a leading system message is the chat template's business
            result.append(Turn(role, without_placeholders(value, images)))
    roles = [turn.role for turn in result]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(f"roles are {roles}; they must alternate user, assistant, and end with an answer")
    if not result[-1].text:
        raise DataError("the last answer is empty; fill it in, or remove the row")
    return tuple(result)


def without_placeholders(text: str, images: int) -> str:
    """A text without `<image>`; a DataError where it has one and the row has no images."""
    if "<image>" not in text:
        return text.strip()
    if not images:
        raise DataError("has <image> in its text and names no image; add the image, or remove the placeholder")
    return PLACEHOLDER.sub("\n", text).strip()


def _role_and_text(turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise DataError(f"turn {short_repr(turn)} must be an object with from and value")
    name, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    role = ROLES.get(str(name).lower())
    if role is None:
        raise DataError(f"role {short_repr(name)} of a turn is unknown; valid: {', '.join(ROLES)}, in any case")
    if not isinstance(value, str):
        raise DataError(f"text {short_repr(value)} of a turn must be a text")
    return role, checked_text(value, "text")
