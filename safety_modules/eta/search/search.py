"""Search: sentence-level best-of-N for a batch of exchanges, on one shared key-value cache."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, MaxTimeCriteria, StoppingCriteriaList

from safety_modules.eta.generator import GREEDY, AnswerGenerator, GreedyAnswers
from safety_modules.eta.search.cache import CacheSpan, can_crop, crop_cache
from safety_modules.eta.search.sampling import sampling_processors
from safety_modules.eta.search.sentences import SentenceEnd
from safety_modules.eta.settings import EtaSettings

logger = logging.getLogger(__name__)

SLOWER = "the prompt is computed again for each sentence, which is slower"
Score = Callable[[Sequence[int], Sequence[str]], Sequence[float]]
"""Numbers of exchanges and their texts -> rewards of answers so far, or cosines of sentences with images."""


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
class SearchState:
    """The search for one exchange's answer.

    Attributes:
        number: of the exchange in its batch.
        prompt: ids of the prompt, without padding.
        answer_ids: ids of the answer so far, its prefix first.
        generators: one random generator for each candidate.
        sentences: accepted so far.
        sampled: tokens sampled, of all candidates.
        end: "" while the search continues; then "end" of text, "length", "budget", "time", or "failed" where a score is
            missing.
        cache_span: where the cache, if there is one, holds all but the last token.
    """

    number: int
    prompt: list[int]
    answer_ids: list[int]
    generators: list[torch.Generator]
    sentences: list[Sentence] = field(default_factory=list)
    sampled: int = 0
    end: str = ""
    cache_span: CacheSpan = (0, 0, 0)

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return self.prompt + self.answer_ids


def sample_seed(seed: int, prompt: Sequence[int], candidate: int) -> int:
    """The seed of a candidate's samples: of the prompt's ids too, so that two exchanges are sampled differently."""
    text = f"{seed} {candidate} {' '.join(map(str, prompt))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Search:
    """Samples N candidates of each exchange's next sentence in one batch, accepts the best, and continues after it.

    Source: ETA (arXiv 2410.06625) section 3.2. A candidate's value is its reward + (alpha / sentence's number) x cosine
    of the image with the sentence; the cosine counts from the second sentence on, and only while no candidate of the
    exchange has ended its text. Differs: candidates and exchanges run in one batch, the prompt is computed once, and
    each candidate has a random generator of its own, so that a seed gives the same tokens in any batch, with the cache
    or without.
    """

    def __init__(self, generator: AnswerGenerator, settings: EtaSettings, reward: Score, match: Score | None) -> None:
        """Args: reward, match: see `Score`; match None leaves the image's term out."""
        self.generator, self.settings, self.reward, self.match = generator, settings, reward, match

    def __call__(
        self, requests: Sequence[Any], numbers: Sequence[int], greedy: GreedyAnswers | None = None
    ) -> list[SearchState]:
        """Search answers to the end; arguments as in `sentences`."""
        return deque(self.sentences(requests, numbers, greedy), maxlen=1).pop()

    @torch.no_grad()
    def sentences(
        self, requests: Sequence[Any], numbers: Sequence[int], greedy: GreedyAnswers | None = None
    ) -> Iterator[list[SearchState]]:
        """Search answers, a sentence at a time.

        Args:
            requests: what the generator reads, of the whole batch.
            numbers: which of them are searched.
            greedy: the batch's greedy answers, whose prompts' cache is used; None to compute the prompts first.

        Yields:
            All states, first as they begin, then after each sentence. A state that is given an `end` is not continued.
        """
        started = time.monotonic()
        greedy = greedy or self.generator.greedy(requests, 1)
        prefix = self.generator.prefix(self.settings.prefix)[: self.settings.max_new_tokens]
        states = [SearchState(i, greedy.ids[i], list(prefix), self._random_generators(greedy.ids[i])) for i in numbers]
        cache = self._prompt_cache(requests, states, greedy) if states else None
        yield states
        while running := [state for state in states if not self._stopped(state, started)]:
            cache = self.next_sentence(requests, running, cache, started)
            yield states

    def _random_generators(self, prompt: list[int]) -> list[torch.Generator]:
        device, settings = self.generator.model.device, self.settings
        seeds = [sample_seed(settings.seed, prompt, candidate) for candidate in range(settings.candidates)]
        return [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def _prompt_cache(self, requests: Sequence[Any], states: list[SearchState], greedy: GreedyAnswers) -> Cache | None:
        """The greedy answers' cache, where it can be cropped to the prompts; else None."""
        if not self.settings.share_cache:
            return None
        generator = self.generator
        if not can_crop(greedy.cache, generator.model):
            if generator.cache_can_be_shared is None:
                logger.warning(
                    "this model's cache has a window, a state or positions, and cannot be cropped: %s", SLOWER
                )
            generator.cache_can_be_shared = False
            return None
        longest = max(map(len, greedy.ids))
        for state in states:
            last = longest if state.answer_ids else longest - 1
            state.cache_span = (state.number, longest - len(state.prompt), last)
        if generator.cache_can_be_shared is None:
            generator.cache_can_be_shared = self._crop_agrees(requests, states[0], greedy.cache)
        return greedy.cache if generator.cache_can_be_shared else None

    def _crop_agrees(self, requests: Sequence[Any], state: SearchState, cache: Cache) -> bool:
        """Whether this model continues a cropped cache as it continues the whole text: tried once."""
        settings = {**GREEDY, "max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
        model, logits = self.generator.model, []
        for past in (crop_cache(cache, [state.cache_span]), None):
            inputs = self.generator.generate_inputs(self.continuation_inputs(requests, [state], past, 1))
            logits.append(model.generate(**inputs, **settings).logits[0].float())
        cached, whole = logits
        tolerance = (1e-3 if model.dtype == torch.float32 else 0.1) * whole.std()
        agrees = bool((cached - whole).abs().max() <= tolerance)
        if not agrees:
            logger.warning("this model does not continue a cropped cache as it continues the whole text: %s", SLOWER)
        return agrees

    def _stopped(self, state: SearchState, started: float) -> bool:
        """Whether this search is over; sets why."""
        settings = self.settings
        if not state.end and len(state.answer_ids) >= settings.max_new_tokens:
            state.end = "length"
        if not state.end and self.token_limit(state) < 1:
            state.end = "budget"
        if not state.end and settings.seconds is not None and time.monotonic() - started >= settings.seconds:
            state.end = "time"
        return bool(state.end)

    def token_limit(self, state: SearchState) -> int:
        """Tokens that the next sentence may have."""
        settings = self.settings
        limit = min(settings.sentence_tokens, settings.max_new_tokens - len(state.answer_ids))
        if settings.token_budget is None:
            return limit
        return min(limit, (settings.token_budget - state.sampled) // settings.candidates)

    def next_sentence(
        self, requests: Sequence[Any], states: list[SearchState], cache: Cache | None, started: float
    ) -> Cache | None:
        """Give each state its next sentence; returns the cache that the states' spans now refer to."""
        copies = self.settings.candidates
        past = crop_cache(cache, [state.cache_span for state in states], copies) if cache is not None else None
        inputs = self.continuation_inputs(requests, states, past, copies)
        limits = [self.token_limit(state) for state in states for _ in range(copies)]
        generators = [generator for state in states for generator in state.generators]
        rows, grown = self.sample(inputs, generators, limits, started)
        width = inputs["input_ids"].shape[1]
        for first, state in zip(range(0, len(rows), copies), states):
            state.sampled += sum(map(len, rows[first : first + copies]))
        for state, best, sentence in self.best_candidates(states, rows):
            self.accept(state, rows[best], sentence, best, width - len(state.ids))
        return grown if cache is not None else None

    def sample(
        self, inputs: dict[str, Any], generators: list[torch.Generator], limits: list[int], started: float
    ) -> tuple[list[list[int]], Cache]:
        """One sentence for each row of the inputs: its ids, and the cache that now holds all but the last of them."""
        settings, generator = self.settings, self.generator
        start = 0 if "inputs_embeds" in inputs else inputs["input_ids"].shape[1]
        end = SentenceEnd(generator.tokenizer, settings.ends_sentence, start, limits, generator.eos)
        stops = StoppingCriteriaList([end])
        if settings.seconds is not None:
            stops.append(MaxTimeCriteria(max(settings.seconds - (time.monotonic() - started), 0.0)))
        output = generator.model.generate(
            **generator.generate_inputs(inputs),
            logits_processor=sampling_processors(generators, end, settings.temperature, settings.top_k),
            stopping_criteria=stops,
            **({"suppress_tokens": generator.suppress} if generator.suppress else {}),
            **GREEDY,
            max_new_tokens=max(limits),
            min_new_tokens=0,  # the model's own bound is of an answer, not of a sentence
            return_dict_in_generate=True,
        )
        rows = [ids[:length] for ids, length in zip(output.sequences[:, start:].tolist(), end.lengths)]
        return rows, output.past_key_values

    def accept(self, state: SearchState, ids: list[int], sentence: Sentence, row: int, padding: int) -> None:
        """Append a sentence to an answer; `row` and `padding` say where a cache holds it."""
        state.answer_ids += ids
        state.sentences.append(sentence)
        state.cache_span = (row, padding, padding + len(state.ids) - 1)
        state.end = "end" if ids[-1] in self.generator.eos else ""

    def best_candidates(
        self, states: list[SearchState], rows: list[list[int]]
    ) -> list[tuple[SearchState, int, Sentence]]:
        """For each state the row of its best candidate, and that sentence; the first of equals.

        A state that misses a score has failed, and is left out.
        """
        copies, generator = self.settings.candidates, self.generator
        owners = [state for state in states for _ in range(copies)]
        texts = [generator.text(row) for row in rows]
        answers = [generator.text(state.answer_ids + row) for state, row in zip(owners, rows)]
        rewards = self.reward([state.number for state in owners], answers)
        cosines = self._cosines(owners, rows, texts)
        best_rows = []
        for first, state in zip(range(0, len(rows), copies), states):
            weight = self.settings.alpha / (len(state.sentences) + 1)
            values = {i: rewards[i] + weight * cosines.get(i, 0.0) for i in range(first, first + copies)}
            if any(map(math.isnan, values.values())):
                state.end = "failed"
                continue
            best = max(values, key=values.__getitem__)
            best_rows.append((state, best, Sentence(texts[best], rewards[best], cosines.get(best), copies)))
        return best_rows

    def _cosines(self, owners: list[SearchState], rows: list[list[int]], texts: list[str]) -> dict[int, float]:
        """Cosines of the candidates whose image counts, by their rows."""
        if self.match is None or self.settings.alpha == 0:
            return {}
        ended = {state.number for state, row in zip(owners, rows) if row[-1] in self.generator.eos}
        counted = [i for i, state in enumerate(owners) if state.sentences and state.number not in ended]
        if not counted:
            return {}
        return dict(zip(counted, self.match([owners[i].number for i in counted], [texts[i] for i in counted])))

    def continuation_inputs(
        self, requests: Sequence[Any], states: list[SearchState], past: Cache | None, copies: int
    ) -> dict[str, Any]:
        """What `generate` is given: the whole text, and its cache or else its images; each state `copies` times."""
        if past is None:
            inputs = self.generator.inputs([requests[state.number] for state in states for _ in range(copies)])
            return self.generator.extend(inputs, [state.answer_ids for state in states for _ in range(copies)])
        ids = [state.ids for state in states for _ in range(copies)]
        width, device = max(map(len, ids)), self.generator.model.device
        padded = [[self.generator.tokenizer.pad_token_id] * (width - len(row)) + row for row in ids]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
        return {
            "input_ids": torch.tensor(padded, device=device),
            "attention_mask": torch.tensor(mask, device=device),
            "past_key_values": past,
        }
