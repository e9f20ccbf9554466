"""Exchange: messages -> what evaluators read of them: the last question and the images."""

from __future__ import annotations

from collections.abc import Sequence

from safety_modules.eta.evaluators.protocols import EtaError, Messages
from safety_modules.prompt.messages import Conversation, read_messages


def question(messages: Messages) -> str:
    """The texts of the last user turn, a line each; "" where it has none.

    Raises:
        ProcessingError: the messages break their format.
    """
    return "\n".join(Conversation(read_messages(messages).messages[-1:]).values("text"))


def images_of(messages: Messages) -> list:
    """The images of all turns, in order, as `load_image` takes them.

    Raises:
        ProcessingError: the messages break their format.
    """
    return read_messages(messages).values("image")


def check_pairs(exchanges: Sequence[Messages], texts: Sequence[str], name: str) -> None:
    """Raise an EtaError where there is not one text for each exchange."""
    if len(exchanges) != len(texts):
        raise EtaError(f"{len(exchanges)} exchanges but {len(texts)} {name}; give one for each exchange")
