"""The prompt of a reward model: instruction, question (or none) and answer -> ids, in the model's own template."""

from __future__ import annotations

import re
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from safety_modules.eta.evaluators.protocols import EtaError
from safety_modules.prompt.plain_text import PlainTextEncoder

# Stands for a text while the template is rendered: texts never enter the template.
SLOT = re.compile("\ue000(\\d)\ue001")
GAP = "\n\n"  # between instruction and question


class RewardPromptEncoder:
    """Encodes by the tokenizer's chat template, or, where it has none, as a pair of texts.

    A special token or role marker in a text keeps its characters, but is encoded with other ids than the template's;
    see `PlainTextEncoder`. Texts are stripped of the spaces around them. A prompt that is too long loses the
    beginning of its question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Args: max_length: the most tokens of a prompt."""
        if not tokenizer.is_fast:
            raise EtaError(f"{type(tokenizer).__name__} has no offsets of its tokens in a text; give a fast tokenizer")
        self.tokenizer, self.max_length = tokenizer, max_length
        self.plain = None
        if tokenizer.chat_template:
            added = tokenizer.added_tokens_decoder.items()
            special = {*tokenizer.all_special_ids, *(token for token, about in added if about.special)}
            self.pieces = {question: self._render(question) for question in (True, False)}
            literals = [literal for pieces in self.pieces.values() for literal in pieces[::2]]
            self.plain = PlainTextEncoder(tokenizer, special, literals)

    def encode(self, instruction: str, question: str, answer: str) -> dict[str, list[int]]:
        """One prompt.

        Args:
            question: "" for none.

        Returns:
            input_ids, attention_mask and, where the tokenizer has them for pairs, token_type_ids, (T,) each.

        Raises:
            EtaError: it is too long even without the question.
        """
        instruction, question, answer = instruction.strip(), question.strip(), answer.strip()
        row = self._encode(instruction, question, answer)
        while (over := len(row["input_ids"]) - self.max_length) > 0:
            if not question:
                raise EtaError(
                    f"an answer of {len(answer)} characters has {len(row['input_ids'])} tokens with its instruction, "
                    f"the reward model reads {self.max_length}; use one that reads more, or generate fewer tokens"
                )
            question = self._later(question, over)
            row = self._encode(instruction, question, answer)
        return row

    def _later(self, text: str, tokens: int) -> str:
        """A text without the characters of its first tokens."""
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        encoded = self.tokenizer(text, return_offsets_mapping=True, **options)
        starts = [start for start, _ in encoded["offset_mapping"]][tokens:]
        return text[max(starts[0], 1) :].strip() if starts else ""

    def _encode(self, instruction: str, question: str, answer: str) -> dict[str, list[int]]:
        if self.plain is None:
            user = f"{instruction}{GAP}{question}" if question else instruction
            row = self.tokenizer(user, answer, split_special_tokens=True, verbose=False)
            return {name: row[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in row}
        texts, prompt, spans = (instruction, question, answer), "", []
        for i, piece in enumerate(self.pieces[bool(question)]):
            if i % 2:
                number = int(piece)
                spans.append((len(prompt), len(prompt) + len(texts[number]), number))
                piece = texts[number]
            prompt += piece
        ids, _ = self.plain.encode(prompt, spans)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def _render(self, question: bool) -> list[str]:
        """The template's own text between the slots: segment, number of a text, segment, ..."""
        user = f"\ue0000\ue001{GAP}\ue0001\ue001" if question else "\ue0000\ue001"
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": "\ue0002\ue001"}]
        try:
            pieces = SLOT.split(cast(str, self.tokenizer.apply_chat_template(messages, tokenize=False)))
        except TemplateError as error:
            raise EtaError(
                f"the reward model's chat template rejects a user's and an assistant's turn: {error}"
            ) from error
        if pieces[1::2] != (["0", "1", "2"] if question else ["0", "2"]):
            raise EtaError(
                "the reward model's chat template drops or repeats a text; give a tokenizer whose template writes each "
                "text once"
            )
        return pieces
