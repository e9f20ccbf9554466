"""Exchange: messages -> what evaluators read of them: the last question and the images."""

from __future__ import annotations

from collections.abc import Sequence

from safety_modules.eta.evaluators.protocols import EtaError, Messages
from safety_modules.prompt.messages import read_messages


def question(messages: Messages) -> str:
    """The texts of the last user turn, a line each; "" where it has none.

    Raises:
        ProcessingError: the messages break their format.
    """
    _, texts, asked, _ = read_messages(messages, "", "exchange")
    turns = sum(message["role"] == "user" for message in messages)
    return "\n".join(texts[number] for number, turn in asked.items() if turn == turns)


def images_of(messages: Messages) -> list:
    """The images of all turns, in order, as `load_image` takes them.

    Raises:
        ProcessingError: the messages break their format.
    """
    return read_messages(messages, "", "exchange")[3]


def check_pairs(exchanges: Sequence[Messages], texts: Sequence[str], name: str) -> None:
    """Raise an EtaError where there is not one text for each exchange."""
    if len(exchanges) != len(texts):
        raise EtaError(f"{len(exchanges)} exchanges but {len(texts)} {name}; give one for each exchange")
