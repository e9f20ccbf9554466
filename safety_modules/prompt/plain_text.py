"""Texts of a prompt stay texts: none of them makes a special token or a role marker that the template writes as plain text."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BYTE = re.compile("<0x[0-9A-F]{2}>")  # name of a token that stands for one byte
GAP = "\u200b"
Span = tuple[int, int, int]  # start and end of a text in the prompt, number of the text
Token = tuple[int, int, int]  # id, start and end of its characters in the prompt


def role_markers(literals: Iterable[str], special: Iterable[str]) -> list[str]:
    """Plain text by which a template tells whose turn it is, such as `USER:` and `ASSISTANT:`.

    These are the lines that it writes between texts and special tokens. A word that stands only behind a special token, as
    in `<|im_start|>user`, is none: a text may hold the word, but not the token.

    Args:
        literals: what the template writes between the texts.
        special: names of the special tokens.
    """
    token = re.compile("|".join(re.escape(name) for name in sorted(special, key=len, reverse=True)))
    markers = set()
    for literal in literals:
        for i, stretch in enumerate(token.split(literal)):
            for j, line in enumerate(stretch.split("\n")):
                marker = line.strip()
                behind_token = i > 0 and j == 0
                if any(map(str.isalnum, marker)) and not (behind_token and marker.isalnum()):
                    markers.add(marker)
    return sorted(markers)


class PlainTextEncoder:
    """Tokenises prompts so that special tokens and role markers are the template's own.

    A special token that the tokenizer finds in a text is read again as ordinary characters. A role marker of which a text
    wrote a part is tokenised letter by letter: the characters stay, and the ids are never those of the template's own marker,
    which has at least one token of several letters. Where a tokenizer spells the template's marker in letters too, a
    zero-width space is put into the text's: the only case in which a character is added.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_ids: set[int], literals: list[str]) -> None:
        """Args: special_ids: tokens that no text may make. literals: what the template writes between texts."""
        self.tokenizer, self.special_ids = tokenizer, special_ids
        self.adds_space = self._spelling("a") != "a"  # in front of a piece of text
        self.adds_second = len(self._spelling(" a")) > 2  # and in front of a space, too
        names = role_markers(literals, tokenizer.convert_ids_to_tokens(sorted(special_ids)))
        self.markers = [self._spelling(name)[self.adds_space :] for name in names]
        self.alike = [marker for marker in self.markers if not self._differs(marker, "x".join(literals))]
        self.gap = [token for token, *_ in self._bare(GAP, 1)]
        if self.alike and not self.gap:
            logger.warning("the base's tokenizer has no %r: a text's %s cannot be told from the template's", GAP, names)

    def encode(self, prompt: str, spans: list[Span], bos: bool = False) -> tuple[list[int], list[list[int]]]:
        """Token ids of a filled prompt, and for each the numbers of the texts that it holds characters of.

        Args:
            spans: where the texts are.
            bos: let the tokenizer put its own special tokens around the prompt.
        """
        tokens = self._tokens(prompt, add_special_tokens=bos)
        held = [self._held(token, prompt, spans) for token in tokens]
        if any(numbers and token in self.special_ids for (token, *_), numbers in zip(tokens, held)):
            tokens = self._reread(tokens, held, prompt)
            held = [self._held(token, prompt, spans) for token in tokens]
        forged = self._forged(tokens, spans)
        pieces = []
        for i, (token, start, end) in enumerate(tokens):
            if held[i] and token in self.special_ids:  # one that the tokenizer finds even when told to look for none
                pieces += [(letter, held[i]) for at in range(start, end) for letter, *_ in self._bare(prompt[at], at)]
            elif i in forged:
                pieces += [(piece, _numbers(a, b, spans)) for piece, a, b in self._apart(tokens[i], forged[i])]
            else:
                pieces.append((token, held[i]))
        for marker in self.alike:
            pieces = self._parted(pieces, marker)
        return [token for token, _ in pieces], [numbers for _, numbers in pieces]

    def _tokens(self, text: str, at: int = 0, **options: bool) -> list[Token]:
        """Tokens of a text that begins at place `at` of the prompt."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False, **options)
        return [(token, at + a, at + b) for token, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"])]

    def _held(self, token: Token, prompt: str, spans: list[Span]) -> list[int]:
        """Numbers of the texts that a token holds characters of; none for the template's own special tokens."""
        token, start, end = token
        if token in self.special_ids:  # some swallow the spaces beside them, which may be a text's
            name = prompt[start:end]
            start, end = start + len(name) - len(name.lstrip()), start + len(name.rstrip())
        return _numbers(start, end, spans)

    def _reread(self, tokens: list[Token], held: list[list[int]], prompt: str) -> list[Token]:
        """The tokens without the special ones that a text wrote.

        From such a token to the template's next special one all is tokenised anew, because a tokenizer may treat what
        follows a special token in its own way (Llama's puts a space in front).
        """
        own = [start for (token, start, _), numbers in zip(tokens, held) if token in self.special_ids and not numbers]
        result, done = [], 0
        for (token, start, end), numbers in zip(tokens, held):
            special = token in self.special_ids
            if special and numbers and start >= done:
                done = min((place for place in own if place > start), default=len(prompt))
                result += self._bare(prompt[start:done], start)
            elif start >= done or (special and not numbers):
                result.append((token, start, end))
        return result

    def _bare(self, text: str, at: int) -> list[Token]:
        """Tokens of a piece of the prompt in which no special token is looked for."""
        tokens = self._tokens(text, at, add_special_tokens=False, split_special_tokens=True)
        letters = self._letters(tokens[0][0]) if tokens else []
        if letters and at and self.adds_space and (self.adds_second or not text.startswith(" ")):
            tokens[:1] = [
                (letter, *tokens[0][1:]) for letter in letters[1:]
            ]  # without the space that is not the prompt's
        return tokens

    def _forged(self, tokens: list[Token], spans: list[Span]) -> dict[int, set[int]]:
        """Tokens that spell a role marker of which a text wrote a part -> which characters of their names do."""
        forged = {}
        for marker in self._spelled(tokens, self.markers):
            if any(a <= _place(tokens[i], size, at) < b for i, size, at in marker for a, b, _ in spans):
                for i, _, at in marker:
                    forged.setdefault(i, set()).add(at)
        return forged

    def _spelled(self, tokens: list[Token], markers: list[str]) -> Iterator[list[tuple[int, int, int]]]:
        """Markers that the tokens' names spell: for each character which token, the length of its name, the place in it.

        The names are searched, not the prompt, whose characters a tokenizer may have changed.
        """
        names = self.tokenizer.convert_ids_to_tokens([token for token, *_ in tokens])
        names = [
            "\n" if token in self.special_ids else name for (token, *_), name in zip(tokens, names)
        ]  # in no marker
        line = "".join(names)
        characters = [(i, len(name), at) for i, name in enumerate(names) for at in range(len(name))]
        for marker in markers:
            for match in re.finditer(f"(?={re.escape(marker)})", line):  # (?=) finds those that overlap, too
                yield characters[match.start() : match.start() + len(marker)]

    def _apart(self, token: Token, forged: set[int]) -> list[Token]:
        """Tokens in place of one: the forged characters of its name alone, what is between them in as few as can be."""
        letters = self._letters(token[0])
        name = self.tokenizer.convert_ids_to_tokens(token[0])
        if len(letters) != len(name):
            return [token]
        pieces, at = [], 0
        while at < len(name):
            stop = at + 1 if at in forged else min((i for i in forged if i > at), default=len(name))
            while (piece := self._known(name[at:stop])) is None:
                stop -= 1
            pieces.append((piece, _place(token, len(name), at), _place(token, len(name), stop - 1) + 1))
            at = stop
        return pieces

    def _parted(self, pieces: list[tuple[int, list[int]]], marker: str) -> list[tuple[int, list[int]]]:
        """Tokens and the texts that they belong to, with a gap in each marker of which a text wrote a part."""
        gaps = {}
        for letters in self._spelled([(token, 0, 0) for token, _ in pieces], [marker]):
            held = [i for i, *_ in letters if pieces[i][1]]
            if held:
                gaps[held[0] if held[0] > letters[0][0] else held[0] + 1] = pieces[held[0]][1]
        parted = []
        for i, piece in enumerate(pieces):
            parted += [(token, gaps[i]) for token in self.gap] if i in gaps else []
            parted.append(piece)
        return parted

    def _spelling(self, text: str) -> str:
        """A text as tokens' names spell it."""
        return "".join(self.tokenizer.tokenize(text, add_special_tokens=False))

    def _differs(self, marker: str, prompt: str) -> bool:
        """Whether a marker has a token of several letters wherever the template writes it."""
        tokens = self._tokens(prompt, add_special_tokens=False)
        split = [self._letters(token) not in ([], [token]) for token, *_ in tokens]
        return all(any(split[i] for i, *_ in letters) for letters in self._spelled(tokens, [marker]))

    def _letters(self, token: int) -> list[int]:
        """Ids of the characters of a token's name, each alone; none where the vocabulary lacks one."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        if BYTE.fullmatch(name):
            return [token]
        letters = [self._known(letter) for letter in name]
        return [] if None in letters else letters

    def _known(self, name: str) -> int | None:
        """Id of the token of this name; None where there is none."""
        token = self.tokenizer.convert_tokens_to_ids(name)
        return None if token == self.tokenizer.unk_token_id else token


def _place(token: Token, size: int, at: int) -> int:
    """Place in the prompt of character `at` of a token's name of length `size`.

    Counted from the end: a space in front of the name may be the tokenizer's.
    """
    _, start, end = token
    return max(start, end - size + at)


def _numbers(start: int, end: int, spans: list[Span]) -> list[int]:
    """Numbers of the texts that have characters between two places of the prompt."""
    return [number for a, b, number in spans if start < b and a < end]
