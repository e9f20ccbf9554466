"""Messages: an exchange in the chat format of transformers -> a checked conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from safety_modules.errors import UserError

QUESTION = "What is in this picture?"  # asked about an image that comes without a question
ROLES = ("system", "user", "assistant")
Part = tuple[str, object]  # ("text", a text) or ("image", what `load_image` takes)
Message = tuple[str, tuple[Part, ...]]  # role, and parts
Structure = tuple[tuple[str, tuple[str, ...]], ...]  # ((role, ("text" | "image", ...)), ...), one entry per message


class ProcessingError(UserError):
    """An exchange cannot be turned into tensors; the message names the row, the rule and the remedy."""


@dataclass(frozen=True)
class Conversation:
    """Checked messages, the last of them a user's."""

    messages: tuple[Message, ...]

    @property
    def structure(self) -> Structure:
        """What a chat template depends on beside the texts."""
        return tuple((role, tuple(kind for kind, _ in parts)) for role, parts in self.messages)

    def values(self, kind: str) -> list:
        """The texts ("text") or images ("image") of all messages, in order."""
        return [value for _, parts in self.messages for own_kind, value in parts if own_kind == kind]

    @property
    def turns(self) -> list[int]:
        """For each text the number of its user turn, from 1; 0 for a text of another role."""
        turns, turn = [], 0
        for role, parts in self.messages:
            turn += role == "user"
            turns += [turn if role == "user" else 0 for kind, _ in parts if kind == "text"]
        return turns


def ask(question: str, images: Sequence[object] = ()) -> list[dict]:
    """Messages of one user turn: images (paths or PIL images), then the question."""
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def read_messages(messages: Sequence[dict], hint: str = "", row: str = "exchange") -> Conversation:
    """Check messages.

    Args:
        hint: goes first, in one system message with the caller's own system text; "" for none.
        row: name of the exchange, for errors.

    Raises:
        ProcessingError: a message breaks the format, or the last one is not a user's.
    """
    checked = [_read(message, row) for message in messages]
    leading = list(
        takewhile(lambda message: message[0] == "system" and [k for k, _ in message[1]] == ["text"], checked)
    )
    system = [*([hint] if hint else []), *(parts[0][1] for _, parts in leading)]
    if system:
        checked = [("system", (("text", " ".join(map(str, system))),)), *checked[len(leading) :]]
    last = checked[-1][0] if checked else "missing"
    if last != "user":
        raise ProcessingError(f"{row}: the last message must be a user's, not {last}; end with the user's question")
    return Conversation(tuple(checked))


def _read(message: dict, row: str) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ProcessingError(f"{row}: role {role!r} of a message; valid roles: {', '.join(ROLES)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content or [], (list, tuple)):
        raise ProcessingError(f"{row}: content {content!r} of a message; give a text, or a list of texts and images")
    return role, tuple(_part(part, row) for part in content or [])


def _part(part: object, row: str) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in ("text", "image") or kind not in part:
        raise ProcessingError(
            f"{row}: content {part!r}; give {{'type': 'text', 'text': ...}} or {{'type': 'image', 'image': ...}}"
        )
    value = part[kind]
    if kind == "text" and (not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value)):
        raise ProcessingError(
            f"{row}: text {value!r} is not Unicode text; half a surrogate pair must be removed or replaced"
        )
    return kind, value
