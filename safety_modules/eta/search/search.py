"""Search: sentence-level best-of-N for a batch of exchanges, on one shared key-value cache."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import Cache, MaxTimeCriteria, StoppingCriteriaList

from safety_modules.eta.generator import GREEDY, AnswerGenerator, Plain
from safety_modules.eta.search.cache import Stretch, can_cut, cut
from safety_modules.eta.search.sampling import draws
from safety_modules.eta.search.sentences import SentenceEnd
from safety_modules.eta.settings import EtaSettings

logger = logging.getLogger(__name__)

SLOWER = "each sentence computes its prompt anew, which is slower"


@dataclass(frozen=True)
class Sentence:
    """One accepted sentence.

    Attributes:
        text: of the sentence alone.
        reward: of the answer up to here.
        match: cosine with the image; None where it did not count.
        candidates: that it was chosen from.
    """

    text: str
    reward: float
    match: float | None
    candidates: int


@dataclass
class Path:
    """The search for one exchange's answer.

    Attributes:
        number: of the exchange in its batch.
        prompt: ids of the prompt, without padding.
        said: ids of the answer so far, its prefix first.
        generators: one for each candidate.
        sentences: accepted so far.
        drawn: tokens drawn, of all candidates.
        end: "" while the search goes on; then "end" of text, "length", "budget", "time", or "failed" where a score is missing.
        stretch: where the cache holds all but the last token.
    """

    number: int
    prompt: list[int]
    said: list[int]
    generators: list[torch.Generator]
    sentences: list[Sentence] = field(default_factory=list)
    drawn: int = 0
    end: str = ""
    stretch: Stretch | None = None

    @property
    def ids(self) -> list[int]:
        """All that the model reads."""
        return self.prompt + self.said


def draw_seed(seed: int, prompt: Sequence[int], candidate: int) -> int:
    """The seed of a candidate's draws: of the prompt's ids too, so that two exchanges do not draw alike."""
    text = f"{seed} {candidate} {' '.join(map(str, prompt))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


Score = Callable[[Sequence[int], Sequence[str]], Sequence[float]]  # numbers of exchanges and their texts -> scores
"""For `Search`: rewards of answers so far, or cosines of sentences with images."""


class Search:
    """Draws N candidates of each exchange's next sentence in one batch, keeps the best, and goes on behind it.

    Source: ETA (arXiv 2410.06625) section 3.2. A candidate's value is its reward + (alpha / sentence's number) x cosine of
    the image with the sentence; the cosine counts from the second sentence on, and not once a candidate of the exchange has
    ended its text. Differs: candidates and exchanges run side by side, the prompt is computed once, and each candidate draws
    from a generator of its own, so that the same seed gives the same tokens in any batch, with the cache or without.
    """

    def __init__(self, generator: AnswerGenerator, settings: EtaSettings, reward: Score, match: Score | None) -> None:
        """Args: reward, match: see `Score`; match None leaves the image's term out."""
        self.generator, self.settings, self.reward, self.match = generator, settings, reward, match

    def __call__(self, asks: Sequence[object], numbers: Sequence[int], plain: Plain | None = None) -> list[Path]:
        """Search answers to the end; arguments as in `sentences`."""
        return deque(self.sentences(asks, numbers, plain), maxlen=1).pop()

    @torch.no_grad()
    def sentences(
        self, asks: Sequence[object], numbers: Sequence[int], plain: Plain | None = None
    ) -> Iterator[list[Path]]:
        """Search answers, a sentence at a time.

        Args:
            asks: what the speaker reads, of the whole batch.
            numbers: which of them.
            plain: the batch's plain answers, whose prompts' cache is used; None to compute the prompts first.

        Yields:
            All paths, first as they begin, then after each sentence. A path that is given an `end` is not followed further.
        """
        started = time.monotonic()
        plain = plain or self.generator.plain(asks, 1)
        begun = self.generator.prefix(self.settings.prefix)[: self.settings.max_new_tokens]
        paths = [Path(i, plain.ids[i], list(begun), self._generators(plain.ids[i])) for i in numbers]
        cache = self._shared(asks, paths, plain) if paths else None
        yield paths
        while left := [path for path in paths if not self._stopped(path, started)]:
            cache = self._sentence(asks, left, cache, started)
            yield paths

    def _generators(self, prompt: list[int]) -> list[torch.Generator]:
        device, settings = self.generator.model.device, self.settings
        return [
            torch.Generator(device).manual_seed(draw_seed(settings.seed, prompt, n)) for n in range(settings.candidates)
        ]

    def _shared(self, asks: Sequence[object], paths: list[Path], plain: Plain) -> Cache | None:
        """The plain answers' cache, where it can be cut to the prompts; None where each sentence must begin anew."""
        if not self.settings.share_cache:
            return None
        if not can_cut(plain.cache, self.generator.model):
            if self.generator.shares is None:
                logger.warning(
                    "this model's cache cannot be cut, as it keeps a window, a state or positions: %s", SLOWER
                )
            self.generator.shares = False
            return None
        longest = max(map(len, plain.ids))
        for path in paths:
            last = longest if path.said else longest - 1
            path.stretch = (path.number, longest - len(path.prompt), last)
        if self.generator.shares is None:
            self.generator.shares = self._agrees(asks, paths[0], plain.cache)
        return plain.cache if self.generator.shares else None

    def _agrees(self, asks: Sequence[object], path: Path, cache: Cache) -> bool:
        """Whether this model continues a cut cache as it continues the whole text: tried once."""
        settings = {**GREEDY, "max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
        model = self.generator.model
        cached, whole = (
            model.generate(**self.generator.read(self._inputs(asks, [path], past, 1)), **settings).logits[0].float()
            for past in (cut(cache, [path.stretch]), None)
        )
        spread = (1e-3 if model.dtype == torch.float32 else 0.1) * whole.std()
        agrees = bool((cached - whole).abs().max() <= spread)
        if not agrees:
            logger.warning("this model does not continue a cut cache as it continues the whole text: %s", SLOWER)
        return agrees

    def _stopped(self, path: Path, started: float) -> bool:
        """Whether the search for this path is over; says why."""
        settings = self.settings
        if not path.end and len(path.said) >= settings.max_new_tokens:
            path.end = "length"
        if not path.end and self._limit(path) < 1:
            path.end = "budget"
        if not path.end and settings.seconds is not None and time.monotonic() - started >= settings.seconds:
            path.end = "time"
        return bool(path.end)

    def _limit(self, path: Path) -> int:
        """Tokens that the next sentence may have."""
        settings = self.settings
        left = min(settings.sentence_tokens, settings.max_new_tokens - len(path.said))
        if settings.token_budget is None:
            return left
        return min(left, (settings.token_budget - path.drawn) // settings.candidates)

    def _sentence(self, asks: Sequence[object], paths: list[Path], cache: Cache | None, started: float) -> Cache | None:
        """Give each path its next sentence; returns the cache that the paths' stretches are now of."""
        copies = self.settings.candidates
        past = cut(cache, [path.stretch for path in paths], copies) if cache is not None else None
        inputs = self._inputs(asks, paths, past, copies)
        limits = [self._limit(path) for path in paths for _ in range(copies)]
        rows, grown = self.drawn(
            inputs, [generator for path in paths for generator in path.generators], limits, started
        )
        width = inputs["input_ids"].shape[1]
        for first, path in zip(range(0, len(rows), copies), paths):
            path.drawn += sum(map(len, rows[first : first + copies]))
        for path, best, sentence in self._best(paths, rows):
            self.accept(path, rows[best], sentence, best, width - len(path.ids))
        return grown if cache is not None else None

    def drawn(
        self, inputs: dict[str, object], generators: list[torch.Generator], limits: list[int], started: float
    ) -> tuple[list[list[int]], Cache]:
        """One sentence for each row of the inputs: its ids, and the cache that now holds all but the last of them."""
        settings, generator = self.settings, self.generator
        start = 0 if "inputs_embeds" in inputs else inputs["input_ids"].shape[1]
        end = SentenceEnd(generator.tokenizer, settings.ends_sentence, start, limits, generator.eos)
        stops = StoppingCriteriaList([end])
        if settings.seconds is not None:
            stops.append(MaxTimeCriteria(max(settings.seconds - (time.monotonic() - started), 0.0)))
        output = generator.model.generate(
            **generator.read(inputs),
            logits_processor=draws(generators, end, settings.temperature, settings.top_k),
            stopping_criteria=stops,
            **({"suppress_tokens": generator.suppress} if generator.suppress else {}),
            **GREEDY,
            max_new_tokens=max(limits),
            min_new_tokens=0,  # the model's own bound is of an answer, not of a sentence
            return_dict_in_generate=True,
        )
        rows = [ids[:length] for ids, length in zip(output.sequences[:, start:].tolist(), end.lengths)]
        return rows, output.past_key_values

    def accept(self, path: Path, ids: list[int], sentence: Sentence, row: int, pad: int) -> None:
        """Put a sentence behind a path's answer; `row` and `pad` say where a cache holds it."""
        path.said += ids
        path.sentences.append(sentence)
        path.stretch = (row, pad, pad + len(path.ids) - 1)
        path.end = "end" if ids[-1] in self.generator.eos else ""

    def _best(self, paths: list[Path], rows: list[list[int]]) -> list[tuple[Path, int, Sentence]]:
        """For each path the row of its best candidate, and that sentence; the first of equals.

        A path that misses a score has failed, and is left out.
        """
        settings, copies, generator = self.settings, self.settings.candidates, self.generator
        owners = [path for path in paths for _ in range(copies)]
        numbers = [path.number for path in owners]
        texts = [generator.text(row) for row in rows]
        rewards = self.reward(numbers, [generator.text(path.said + row) for path, row in zip(owners, rows)])
        ended = {path.number for path, row in zip(owners, rows) if row[-1] in generator.eos}
        fits = self.match is not None and settings.alpha > 0
        counts = [i for i, path in enumerate(owners) if fits and path.sentences and path.number not in ended]
        cosines = dict(
            zip(counts, self.match([numbers[i] for i in counts], [texts[i] for i in counts]) if counts else [])
        )
        chosen = []
        for first, path in zip(range(0, len(rows), copies), paths):
            weight = settings.alpha / (len(path.sentences) + 1)
            values = {i: rewards[i] + weight * cosines.get(i, 0.0) for i in range(first, first + copies)}
            if any(map(math.isnan, values.values())):
                path.end = "failed"
                continue
            best = max(values, key=values.__getitem__)
            chosen.append((path, best, Sentence(texts[best], rewards[best], cosines.get(best), copies)))
        return chosen

    def _inputs(self, asks: Sequence[object], paths: list[Path], past: Cache | None, copies: int) -> dict[str, object]:
        """What `generate` is given: the whole text, and its cache or else its images; each path `copies` times."""
        if past is None:
            inputs = self.generator.inputs([asks[path.number] for path in paths for _ in range(copies)])
            return self.generator.extend(inputs, [path.said for path in paths for _ in range(copies)])
        ids = [path.ids for path in paths for _ in range(copies)]
        width, device = max(map(len, ids)), self.generator.model.device
        padded = [[self.generator.tokenizer.pad_token_id] * (width - len(row)) + row for row in ids]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
        return {
            "input_ids": torch.tensor(padded, device=device),
            "attention_mask": torch.tensor(mask, device=device),
            "past_key_values": past,
        }
