"""ChatTemplate: the base's own chat template, rendered with a slot for each text, so that no text takes part in it."""

from __future__ import annotations

import re
from contextlib import suppress

from jinja2 import TemplateError
from transformers import ProcessorMixin

from safety_modules.prompt.messages import ProcessingError, Structure

CACHE_SIZE = 256  # rendered structures; more than that are rendered each time
SLOT = re.compile("\ue000(\\d+)\ue001")


class ChatTemplate:
    """Renders the structure of a conversation: literals, and slots that its texts fill."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor = processor
        self._rendered: dict[tuple[Structure, bool], tuple[str, ...]] = {}

    def render(self, structure: Structure, generate: bool = True) -> tuple[str, ...]:
        """Literal, number of a text, literal, ..., literal. Args: generate: end with the generation prompt.

        Raises:
            ProcessingError: the template does not take these roles, or does not write each text once.
        """
        if (structure, generate) in self._rendered:
            return self._rendered[structure, generate]
        messages: list[dict] = []
        texts = 0
        for role, kinds in structure:
            content = []
            for kind in kinds:
                content.append(
                    {"type": "text", "text": f"\ue000{texts}\ue001"} if kind == "text" else {"type": "image"}
                )
                texts += kind == "text"
            messages.append({"role": role, "content": content})
        try:
            rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            roles = [role for role, _ in structure]
            raise ProcessingError(f"the base's chat template does not take turns {roles}: {error}") from error
        pieces = tuple(SLOT.split(rendered))
        if sorted(map(int, pieces[1::2])) != list(range(texts)):
            raise ProcessingError(
                "the base's chat template drops or repeats a text; use a template that writes each once"
            )
        if len(self._rendered) < CACHE_SIZE:
            self._rendered[structure, generate] = pieces
        return pieces

    def literals(self) -> list[str]:
        """What the template writes between texts, in conversations with and without a system message."""
        turns = tuple((role, ("text",)) for role in ("system", "user", "assistant", "user"))
        literals: list[str] = []
        for structure in (turns, turns[1:], turns[1:2]):
            with suppress(ProcessingError):  # a template may take no system message, or one turn only
                literals += self.render(structure)[::2]
        return literals

    def answer_lead(self, structure: Structure) -> str:
        """What the template writes between its generation prompt and the answer.

        Raises:
            ProcessingError: the answer does not follow the generation prompt.
        """
        prompt = "".join(self.render(structure))
        answered = self.render((*structure, ("assistant", ("text",))), generate=False)
        texts = sum(kinds.count("text") for _, kinds in structure)
        if int(answered[-2]) != texts or not "".join(answered).startswith(prompt):
            raise ProcessingError("the base's chat template does not continue its generation prompt with the answer")
        return "".join(answered[:-2])[len(prompt) :]
