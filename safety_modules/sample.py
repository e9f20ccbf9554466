"""Sample: one labelled exchange, which is all that a recipe returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safety_modules.errors import UserError


class DataError(UserError):
    """A data file or row breaks a rule; the message names the file, the row and the remedy."""


class ImageSource(Protocol):
    """An image that is not read yet: a path, or a cell of a table. Hashable."""

    name: str  # of its file, or its place in the table

    def read_bytes(self) -> bytes:
        """The image's file."""


@dataclass(frozen=True)
class Turn:
    """One message. `role` is "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """An exchange and its label; a DataError where the roles do not alternate.

    Attributes:
        images: none, one or several; they stand before the first user turn's text.
        turns: user and assistant in alternation, the first of a user, the last of the assistant. The last answer is
            "" where a data set for evaluation alone has none.
        risk_type: a name of the taxonomy.
        risk_level: 0 for clean, from 1 for risky.
        source: "file:row", for messages and reports.
    """

    images: tuple[Path | ImageSource, ...]
    turns: tuple[Turn, ...]
    risk_type: str
    risk_level: int
    source: str

    def __post_init__(self) -> None:
        roles = [turn.role for turn in self.turns]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            raise DataError(
                f"{self.source}: the turns' roles are {roles}; they must alternate user, assistant and end with the "
                "assistant's answer"
            )

    @property
    def question(self) -> str:
        """The last user turn's text."""
        return self.turns[-2].text

    @property
    def answer(self) -> str:
        """The last assistant turn's text: what is supervised."""
        return self.turns[-1].text

    def messages(self) -> list[dict]:
        """Chat messages as `SafeProcessor` takes them, without the last answer; the images before the first text."""
        messages: list[dict] = [
            {"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in self.turns[:-1]
        ]
        messages[0]["content"][:0] = [{"type": "image", "image": image} for image in self.images]
        return messages
