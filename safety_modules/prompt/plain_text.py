"""PlainTextEncoder: tokenises a prompt so that no text in it becomes a special token or a role marker."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BYTE = re.compile("<0x[0-9A-F]{2}>")  # name of a token that stands for one byte
GAP = "\u200b"  # zero-width space
Span = tuple[int, int, int]  # start and end of a text in the prompt, number of the text
Piece = tuple[int, list[int]]  # token id, numbers of the texts that it holds characters of
NameCharacter = tuple[int, int, int]  # index of a token, length of its name, index of a character in the name


class Token(NamedTuple):
    """A token id, and where its characters are in the prompt."""

    id: int
    start: int
    end: int


def role_markers(literals: Iterable[str], special: Iterable[str]) -> list[str]:
    """Plain text by which a template marks whose turn it is, such as `USER:` and `ASSISTANT:`.

    These are the lines that it writes between texts and special tokens. A word directly after a special token, as in
    `<|im_start|>user`, is not one: a text may hold the word, but not the token.

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
                after_token = i > 0 and j == 0
                if any(map(str.isalnum, marker)) and not (after_token and marker.isalnum()):
                    markers.add(marker)
    return sorted(markers)


class PlainTextEncoder:
    """Tokenises prompts so that special tokens and role markers are the template's own.

    A special token that the tokenizer finds in a text is tokenised again as ordinary characters. A role marker that a
    text wrote, whole or in part, is tokenised character by character: the text is unchanged, but its ids are never
    those of the template's marker, which has at least one token of several characters. Where the tokenizer splits the
    template's marker into characters too, a zero-width space goes into the text's marker: the only case in which a
    character is added.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_ids: set[int], literals: list[str]) -> None:
        """Args: special_ids: tokens that no text may become. literals: what the template writes between texts."""
        self.tokenizer, self.special_ids = tokenizer, special_ids
        self.adds_space = self._spelling("a") != "a"  # before a text
        self.adds_second_space = len(self._spelling(" a")) > 2  # before a text that begins with a space, too
        names = role_markers(literals, tokenizer.convert_ids_to_tokens(sorted(special_ids)))
        self.markers = [self._spelling(name)[self.adds_space :] for name in names]
        self.split_markers = [marker for marker in self.markers if self._splits(marker, "x".join(literals))]
        self.gap = [token.id for token in self._tokenize_plain(GAP, 1)]
        if self.split_markers and not self.gap:
            logger.warning(
                "the base's tokenizer has no %r, so a text can write the template's role markers %s", GAP, names
            )

    def encode(self, prompt: str, spans: Sequence[Span], bos: bool = False) -> tuple[list[int], list[list[int]]]:
        """Token ids of a prompt, and for each the numbers of the texts that it holds characters of.

        Args:
            spans: where the texts are.
            bos: let the tokenizer put its own special tokens around the prompt.
        """
        tokens = self._tokenize(prompt, add_special_tokens=bos)
        if any(self._is_forged(token, prompt, spans) for token in tokens):
            tokens = self._retokenize_forged(tokens, prompt, spans)
        marker_characters = self._forged_marker_characters(tokens, spans)
        pieces: list[Piece] = []
        for i, token in enumerate(tokens):
            texts = self._texts_of(token, prompt, spans)
            if self._is_forged(token, prompt, spans):  # the tokenizer finds it even with split_special_tokens
                for at in range(token.start, token.end):
                    pieces += [(piece.id, texts) for piece in self._tokenize_plain(prompt[at], at)]
            elif i in marker_characters:
                split = self._split(token, marker_characters[i])
                pieces += [(piece.id, _texts_between(piece.start, piece.end, spans)) for piece in split]
            else:
                pieces.append((token.id, texts))
        for marker in self.split_markers:
            pieces = self._insert_gaps(pieces, marker)
        return [token for token, _ in pieces], [texts for _, texts in pieces]

    def _tokenize(self, text: str, at: int = 0, **options: bool) -> list[Token]:
        """Tokens of the part of the prompt that begins at `at`."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False, **options)
        offsets = encoded["offset_mapping"]
        return [Token(token, at + start, at + end) for token, (start, end) in zip(encoded["input_ids"], offsets)]

    def _tokenize_plain(self, text: str, at: int) -> list[Token]:
        """The same without special tokens, and without the space that some tokenizers put before a text."""
        tokens = self._tokenize(text, at, add_special_tokens=False, split_special_tokens=True)
        if tokens and at and self.adds_space and (self.adds_second_space or not text.startswith(" ")):
            if characters := self._character_ids(tokens[0].id):
                tokens[:1] = [tokens[0]._replace(id=character) for character in characters[1:]]
        return tokens

    def _texts_of(self, token: Token, prompt: str, spans: Sequence[Span]) -> list[int]:
        """Numbers of the texts that a token holds characters of; none for the template's own special tokens."""
        _, start, end = token
        if token.id in self.special_ids:  # some swallow the spaces beside them, which may be a text's
            name = prompt[start:end]
            start, end = start + len(name) - len(name.lstrip()), start + len(name.rstrip())
        return _texts_between(start, end, spans)

    def _is_forged(self, token: Token, prompt: str, spans: Sequence[Span]) -> bool:
        """Whether it is a special token that a text wrote."""
        return token.id in self.special_ids and bool(self._texts_of(token, prompt, spans))

    def _retokenize_forged(self, tokens: list[Token], prompt: str, spans: Sequence[Span]) -> list[Token]:
        """Tokenise again from each special token that a text wrote to the template's next one."""
        # To the next one, because a tokenizer may treat what follows a special token differently: Llama's adds a space
        forged = [self._is_forged(token, prompt, spans) for token in tokens]
        own = [token.id in self.special_ids and not fake for token, fake in zip(tokens, forged)]
        own_starts = [token.start for token, is_own in zip(tokens, own) if is_own]
        result, done = [], 0  # the prompt is tokenised up to `done`
        for token, fake, is_own in zip(tokens, forged, own):
            if fake and token.start >= done:
                done = min((start for start in own_starts if start > token.start), default=len(prompt))
                result += self._tokenize_plain(prompt[token.start : done], token.start)
            elif is_own or token.start >= done:
                result.append(token)
        return result

    def _forged_marker_characters(self, tokens: list[Token], spans: Sequence[Span]) -> dict[int, set[int]]:
        """Index of a token -> the characters of its name in a role marker that a text wrote, whole or in part."""
        forged: dict[int, set[int]] = {}
        for characters in self._find([token.id for token in tokens], self.markers):
            places = [_position(tokens[i], length, index) for i, length, index in characters]
            if any(_texts_between(place, place + 1, spans) for place in places):
                for i, _, index in characters:
                    forged.setdefault(i, set()).add(index)
        return forged

    def _find(self, ids: list[int], markers: list[str]) -> Iterator[list[NameCharacter]]:
        """Each marker in the tokens' names, not in the prompt, whose characters a tokenizer may have changed."""
        names = self.tokenizer.convert_ids_to_tokens(ids)
        names = ["\n" if token in self.special_ids else name for token, name in zip(ids, names)]  # in no marker
        spelled = "".join(names)
        characters = [(i, len(name), j) for i, name in enumerate(names) for j in range(len(name))]
        for marker in markers:
            for match in re.finditer(f"(?={re.escape(marker)})", spelled):  # (?=) finds overlapping ones, too
                yield characters[match.start() : match.start() + len(marker)]

    def _split(self, token: Token, forged: set[int]) -> list[Token]:
        """Tokens in place of one: each forged character of its name alone, the rest in as few tokens as possible."""
        name = self._name(token.id)
        if len(self._character_ids(token.id)) != len(name):
            return [token]
        pieces, start = [], 0
        while start < len(name):
            end = start + 1 if start in forged else min((i for i in forged if i > start), default=len(name))
            while (piece := self._id(name[start:end])) is None:
                end -= 1
            first, last = (_position(token, len(name), index) for index in (start, end - 1))
            pieces.append(Token(piece, first, last + 1))
            start = end
        return pieces

    def _insert_gaps(self, pieces: list[Piece], marker: str) -> list[Piece]:
        """Put a gap into each marker that a text wrote, whole or in part."""
        gaps: dict[int, list[int]] = {}  # index of the piece after a gap -> the texts that the gap belongs to
        for characters in self._find([token for token, _ in pieces], [marker]):
            if of_texts := [i for i, *_ in characters if pieces[i][1]]:
                first = of_texts[0]
                gaps[first if first > characters[0][0] else first + 1] = pieces[first][1]
        result = []
        for i, piece in enumerate(pieces):
            result += [(token, gaps[i]) for token in self.gap] if i in gaps else []
            result.append(piece)
        return result

    def _splits(self, marker: str, template: str) -> bool:
        """Whether the tokenizer splits a marker into single characters anywhere in the template."""
        ids = self.tokenizer(template, add_special_tokens=False, verbose=False)["input_ids"]
        single = [self._character_ids(token) in ([], [token]) for token in ids]
        return any(all(single[i] for i, *_ in characters) for characters in self._find(ids, [marker]))

    def _spelling(self, text: str) -> str:
        """A text as the names of its tokens spell it."""
        return "".join(self.tokenizer.tokenize(text, add_special_tokens=False))

    def _character_ids(self, token: int) -> list[int]:
        """Ids of the single characters of a token's name; none where the vocabulary lacks one."""
        name = self._name(token)
        if BYTE.fullmatch(name):
            return [token]
        ids = [self._id(character) for character in name]
        return [] if None in ids else cast(list[int], ids)

    def _name(self, token: int) -> str:
        return cast(str, self.tokenizer.convert_ids_to_tokens(token))  # a list only where it is given one

    def _id(self, name: str) -> int | None:
        """Id of the token of this name; None where there is none."""
        token = cast(int, self.tokenizer.convert_tokens_to_ids(name))  # a list only where it is given one
        return None if token == self.tokenizer.unk_token_id else token


def _position(token: Token, length: int, index: int) -> int:
    """Place in the prompt of a character of a token's name, from its end: a space before it may be the tokenizer's."""
    return max(token.start, token.end - length + index)


def _texts_between(start: int, end: int, spans: Sequence[Span]) -> list[int]:
    """Numbers of the texts that have characters between two places of the prompt."""
    return [number for first, last, number in spans if first < end and start < last]
