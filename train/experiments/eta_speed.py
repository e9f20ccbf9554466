"""What ETA costs: its batched search against a sequential one, and benign traffic against plain answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import Cache

from safety_modules.eta import AnswerGenerator, Eta, EtaResult, EtaSettings
from safety_modules.eta.evaluators.protocols import Messages
from safety_modules.eta.search.cache import crop_cache
from safety_modules.eta.search.search import Score, Search, SearchState
from train.benchmarks.timing import time_in_turns


class SequentialSearch(Search):
    """The search for one exchange as the release of ETA runs it: one candidate after another, each scored alone.

    It samples what the batched search samples, so both give the same tokens, and also computes the prompt's cache once.
    """

    def __init__(self, generator: AnswerGenerator, settings: EtaSettings, reward: Score, match: Score | None) -> None:
        super().__init__(generator, settings, _one_by_one(reward), match and _one_by_one(match))

    def next_sentence(
        self, requests: Sequence[object], states: list[SearchState], cache: Cache | None, started: float
    ) -> Cache | None:
        """The next sentence of the only search."""
        (state,) = states
        candidates = []
        for generator in state.generators:
            past = crop_cache(cache, [state.cache_span]) if cache is not None else None
            (ids,), grown = self.sample(
                self.continuation_inputs(requests, states, past, 1), [generator], [self.token_limit(state)], started
            )
            candidates.append((ids, grown))
        state.sampled += sum(len(ids) for ids, _ in candidates)
        for _, best, sentence in self.best_candidates(states, [ids for ids, _ in candidates]):
            self.accept(state, candidates[best][0], sentence, 0, 0)
            cache = candidates[best][1] if cache is not None else None
        return cache


def search_speed(
    generator: AnswerGenerator, eta: Eta, requests: Sequence[Messages], exchanges: Sequence[Messages], repeats: int = 3
) -> dict[str, float]:
    """How much faster the search is than `SequentialSearch`, on exchanges that need one.

    Args:
        requests: what the generator reads.
        exchanges: what the evaluators read.
        repeats: of each search, in turns; the median counts.

    Returns:
        best_of_n_speedup, with `settings.batch_size` exchanges at a time; one_exchange_speedup, with one, which cannot
        be much more than length_bound: sampled tokens over steps of the longest candidates. The seconds behind them,
        for one exchange. same_tokens: fraction of exchanges in which all searches gave the same tokens.
    """
    counts: list[tuple[int, int]] = []  # of each sentence: tokens of all candidates, steps of the longest

    class CountingSearch(Search):
        def sample(self, *args: object) -> tuple[list[list[int]], Cache]:
            rows, cache = super().sample(*args)
            counts.append((sum(map(len, rows)), max(map(len, rows))))
            return rows, cache

    def search(kind: type[Search], size: int) -> list[list[int]]:
        answers = []
        for start in range(0, len(requests), size):
            batch = slice(start, start + size)
            states = kind(generator, eta.settings, *_scores(eta, exchanges[batch]))(
                requests[batch], range(len(requests[batch]))
            )
            answers += [state.answer_ids for state in states]
        return answers

    functions = {
        "one_by_one": lambda: search(SequentialSearch, 1),
        "one_exchange": lambda: search(CountingSearch, 1),
        "search": lambda: search(Search, eta.settings.batch_size),
    }
    timings = time_in_turns(functions, repeats)
    seconds = {name: timing.median for name, timing in timings.items()}
    tokens, steps = map(sum, zip(*counts))
    same = [a == b == c for a, b, c in zip(*(timing.result for timing in timings.values()))]
    return {
        "best_of_n_speedup": seconds["one_by_one"] / seconds["search"],
        "one_exchange_speedup": seconds["one_by_one"] / seconds["one_exchange"],
        "length_bound": tokens / steps,
        **{f"seconds_{name}": value / len(requests) for name, value in seconds.items()},
        "same_tokens": sum(same) / len(same),
        "exchanges": len(requests),
    }


def benign_cost(
    plain: Callable[[], list[str]],
    assess: Callable[[], object],
    aligned: Callable[[], list[EtaResult]],
    repeats: int = 3,
) -> dict[str, float]:
    """What benign traffic pays for ETA; all three functions answer the same exchanges.

    Args:
        plain: the model's answers.
        assess: the head's assessment, which comes before ETA.
        aligned: with ETA, `assess` included.

    Returns:
        benign_overhead: seconds with ETA over those of plain answers, less 1. benign_evaluation and benign_search:
        seconds of the evaluators and of the search over those of plain answers. seconds_plain: of one exchange.
    """
    timings = time_in_turns({"plain": plain, "assess": assess, "eta": aligned}, repeats)
    seconds, results = timings["plain"].median, timings["eta"].result
    phases = {name: sum(result.seconds.get(name, 0.0) for result in results) for name in ("pre", "post", "search")}
    return {
        "benign_overhead": timings["eta"].median / seconds - 1,
        "benign_evaluation": (timings["assess"].median + phases["pre"] + phases["post"]) / seconds,
        "benign_search": phases["search"] / seconds,
        "seconds_plain": seconds / len(results),
        "exchanges": len(results),
    }


def _scores(eta: Eta, exchanges: Sequence[Messages]) -> tuple[Score, Score | None]:
    """Rewards and, where there is a matcher, cosines of texts to exchanges by their numbers."""

    def match(numbers: Sequence[int], sentences: Sequence[str]) -> Sequence[float]:
        return eta.match.match([exchanges[i] for i in numbers], sentences)

    return lambda numbers, texts: eta.post([exchanges[i] for i in numbers], texts), match if eta.match else None


def _one_by_one(score: Score) -> Score:
    return lambda numbers, texts: [score([number], [text])[0] for number, text in zip(numbers, texts)]
