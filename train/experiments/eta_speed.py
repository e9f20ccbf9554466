"""What ETA costs: the search against one that draws candidate after candidate, and benign traffic against plain answers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from transformers import Cache

from safety_modules.eta import AnswerGenerator, Eta, EtaResult
from safety_modules.eta.evaluators.protocols import Messages
from safety_modules.eta.search.cache import cut
from safety_modules.eta.search.search import Path, Search


class OneByOne(Search):
    """The same search, drawn as the release of ETA does: one candidate after another, each scored alone.

    Its draws are the search's own, so both give the same tokens; and so is the prompt's cache, which is computed once.
    """

    def _sentence(self, asks: Sequence[object], paths: list[Path], cache: Cache | None, started: float) -> Cache | None:
        """The next sentence of the only path."""
        (path,) = paths
        drawn = []
        for generator in path.generators:
            past = cut(cache, [path.stretch]) if cache is not None else None
            inputs = self._inputs(asks, paths, past, 1)
            (ids,), grown = self.drawn(inputs, [generator], [self._limit(path)], started)
            drawn.append((ids, grown))
        path.drawn += sum(len(ids) for ids, _ in drawn)
        for _, best, sentence in self._best(paths, [ids for ids, _ in drawn]):
            self.accept(path, drawn[best][0], sentence, 0, 0)
            cache = drawn[best][1] if cache is not None else None
        return cache


def search_speed(
    generator: AnswerGenerator, eta: Eta, exchanges: Sequence[Messages], told: Sequence[Messages], repeats: int = 3
) -> dict[str, float]:
    """How many times faster the search is than `OneByOne`, on exchanges that need one.

    Args:
        exchanges: what the speaker reads.
        told: what the evaluators read.
        repeats: of each way, in turn; the median counts.

    Returns:
        best_of_n_speedup, as `Eta` searches: `settings.batch_size` exchanges at a time; one_exchange_speedup, with one
        exchange at a time, which cannot be much more than length_bound: tokens drawn, over steps of the longest candidates;
        the seconds behind them, for one exchange; same_tokens, the share of exchanges in which all ways gave the same tokens.
    """

    def rewards(first: int) -> Callable[[Sequence[int], Sequence[str]], Sequence[float]]:
        return lambda numbers, texts: eta.post([told[first + i] for i in numbers], texts)

    def one_reward(first: int) -> Callable[[Sequence[int], Sequence[str]], Sequence[float]]:
        return lambda numbers, texts: [eta.post([told[first + i]], [text])[0] for i, text in zip(numbers, texts)]

    def cosines(first: int, alone: bool) -> Callable[[Sequence[int], Sequence[str]], Sequence[float]] | None:
        if eta.match is None:
            return None
        if alone:
            return lambda numbers, texts: [
                eta.match.match([told[first + i]], [text])[0] for i, text in zip(numbers, texts)
            ]
        return lambda numbers, texts: eta.match.match([told[first + i] for i in numbers], texts)

    def one_by_one() -> list[list[int]]:
        searches = [OneByOne(generator, eta.settings, one_reward(i), cosines(i, True)) for i in range(len(exchanges))]
        return [search([ask], [0])[0].said for search, ask in zip(searches, exchanges)]

    counts: list[tuple[int, int]] = []  # of each sentence searched one exchange at a time: tokens, steps

    class Counted(Search):
        def drawn(self, *args: object) -> tuple[list[list[int]], Cache]:
            rows, cache = super().drawn(*args)
            counts.append((sum(map(len, rows)), max(map(len, rows))))
            return rows, cache

    def together(size: int) -> list[list[int]]:
        said, kind = [], Counted if size == 1 else Search
        for i in range(0, len(exchanges), size):
            part = exchanges[i : i + size]
            paths = kind(generator, eta.settings, rewards(i), cosines(i, False))(part, list(range(len(part))))
            said += [path.said for path in paths]
        return said

    ways = {
        "one_by_one": one_by_one,
        "one_exchange": lambda: together(1),
        "search": lambda: together(eta.settings.batch_size),
    }
    seconds, said = in_turn(ways, repeats)
    tokens, steps = map(sum, zip(*counts))
    same = [a == b == c for a, b, c in zip(*said.values())]
    return {
        "best_of_n_speedup": seconds["one_by_one"] / seconds["search"],
        "one_exchange_speedup": seconds["one_by_one"] / seconds["one_exchange"],
        "length_bound": tokens / steps,
        **{f"seconds_{name}": value / len(exchanges) for name, value in seconds.items()},
        "same_tokens": sum(same) / len(same),
        "exchanges": len(exchanges),
    }


def benign_cost(
    plain: Callable[[], list[str]],
    assess: Callable[[], object],
    aligned: Callable[[], list[EtaResult]],
    repeats: int = 3,
) -> dict[str, float]:
    """What benign traffic pays for ETA; all three answer the same exchanges.

    Args:
        plain: the model's answers.
        assess: what comes before answers, where it is not ETA's own pre-evaluator.
        aligned: with ETA, `assess` included.

    Returns:
        benign_overhead, seconds with ETA over those of plain answers, less 1; benign_evaluation, the evaluators' seconds over
        those of plain answers; benign_search, the search's; seconds_plain, of one exchange.
    """
    seconds, found = in_turn({"plain": plain, "assess": assess, "eta": aligned}, repeats)
    spent = {name: sum(result.seconds.get(name, 0.0) for result in found["eta"]) for name in ("pre", "post", "search")}
    return {
        "benign_overhead": seconds["eta"] / seconds["plain"] - 1,
        "benign_evaluation": (seconds["assess"] + spent["pre"] + spent["post"]) / seconds["plain"],
        "benign_search": spent["search"] / seconds["plain"],
        "seconds_plain": seconds["plain"] / len(found["plain"]),
        "exchanges": len(found["plain"]),
    }


def in_turn(ways: dict[str, Callable[[], list]], repeats: int) -> tuple[dict[str, float], dict[str, list]]:
    """Median seconds of each way, all taken in turn so that what else the machine does falls on all; and the last results."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, found
