"""Messages: a conversation as a user gives it -> its structure, its texts and its images."""

from __future__ import annotations

from collections.abc import Sequence

from safety_modules.errors import UserError


class ProcessingError(UserError):
    """An exchange cannot be turned into tensors; the message names the row, the rule and the remedy."""


def read_messages(messages: Sequence[dict], hint: str, row: str) -> tuple[tuple, list[str], dict[int, int], list]:
    """Messages -> structure ((role, ("text" | "image", ...)), ...), texts, number of a user's text -> turn, images."""
    structure, texts, asked, images, turn = [], [], {}, [], 0
    if hint:
        structure.append(("system", ("text",)))
        texts.append(hint)
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise ProcessingError(f"{row}: role {role!r} of a message; valid roles: system, user, assistant")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if not isinstance(parts, (list, tuple)):
            raise ProcessingError(
                f"{row}: content {content!r} of a message; give a text, or a list of texts and images"
            )
        kinds = []
        turn += role == "user"
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "image") or kind not in part:
                raise ProcessingError(
                    f"{row}: content {part!r}; give {{'type': 'text', 'text': ...}} or {{'type': 'image', 'image': ...}}"
                )
            if kind == "image":
                images.append(part["image"])
            else:
                if role == "user":
                    asked[len(texts)] = turn
                texts.append(_text(part["text"], row))
            kinds.append(kind)
        if role == "system" and structure and structure[0][0] == "system" and kinds == ["text"]:
            texts[-2:] = [" ".join(texts[-2:])]  # one system part: the hint, then the caller's own
            continue
        structure.append((role, tuple(kinds)))
    if not structure or structure[-1][0] != "user":
        raise ProcessingError(
            f"{row}: the last message must be a user's, not {structure[-1][0] if structure else 'missing'}"
        )
    return tuple(structure), texts, asked, images


def _text(text: object, row: str) -> str:
    """A text that a tokenizer can read."""
    if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ProcessingError(
            f"{row}: text {text!r} is no Unicode text; half a surrogate pair must be removed or replaced"
        )
    return text
