"""EtaSettings: how ETA searches for a better answer; the paper's values by default."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from safety_modules.eta.evaluators.protocols import EtaError
from safety_modules.eta.search.sentences import ends_sentence

REFUSAL = "I'm sorry, I cannot help with this."
ON_UNSAFE = ("refuse", "answer")
COUNTS = ("candidates", "sentence_tokens", "max_new_tokens", "batch_size", "token_budget")
BOUNDS = {name: (1.0, True) for name in COUNTS}  # setting -> its lowest value, and whether it is a whole number
BOUNDS |= {"top_k": (0.0, True), "seed": (0.0, True), "alpha": (0.0, False)}
BOUNDS |= {name: (math.ulp(0.0), False) for name in ("temperature", "seconds", "timeout_s")}
UNBOUNDED = ("token_budget", "seconds", "timeout_s")  # settings that may be None


@dataclass(frozen=True)
class EtaSettings:
    """Settings of the search and of what follows it.

    Source: ETA (arXiv 2410.06625) section 3.2 and its release. There, one number is both `candidates` and `top_k`.

    Attributes:
        prefix: interference prefix that an aligned answer begins with; "" for none.
        candidates: N, continuations that are sampled for each sentence; from 1.
        top_k: tokens that one is sampled from; 0 for all.
        temperature: that logits are divided by; above 0.
        sentence_tokens: bound on a sentence, in tokens.
        ends_sentence: the sentence so far -> whether it is whole; any language by default.
        alpha: weight of the image's cosine with a sentence, divided by the sentence's number.
        seed: of the sampling; an exchange's samples depend on it and on its prompt, not on the rest of its batch.
        max_new_tokens: bound on an answer, its prefix included, in tokens.
        token_budget: tokens that may be sampled for one exchange, all candidates together; None for no bound.
        seconds: bound on the search of one batch; None for no bound. Past a bound the best so far is the answer.
        on_unsafe: where the search's own answer is still unsafe: "refuse", or "answer" with it as the paper does.
        refusal: the text of a refusal.
        timeout_s: seconds that an evaluator may take for one batch; None for no bound.
        batch_size: exchanges that are answered together; N times as many candidates are sampled at once.
        share_cache: False computes the prompt again for every sentence, which is many times slower: for models whose
            cache cannot be cropped.
    """

    prefix: str = "As an AI assistant"
    candidates: int = 5
    top_k: int = 5
    temperature: float = 1.5
    sentence_tokens: int = 70
    ends_sentence: Callable[[str], bool] = ends_sentence
    alpha: float = 1.0
    seed: int = 0
    max_new_tokens: int = 1024
    token_budget: int | None = None
    seconds: float | None = None
    on_unsafe: str = "refuse"
    refusal: str = REFUSAL
    timeout_s: float | None = 120.0
    batch_size: int = 8
    share_cache: bool = True

    def __post_init__(self) -> None:
        """Check every value; an EtaError names the setting."""
        for name, (low, whole) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None or name not in UNBOUNDED:
                _above(name, value, low, whole)
        for name in ("prefix", "refusal"):
            if not isinstance(getattr(self, name), str):
                raise EtaError(f"{name} is {getattr(self, name)!r}; give a text")
        if not isinstance(self.share_cache, bool):
            raise EtaError(f"share_cache is {self.share_cache!r}; give true or false")
        if self.on_unsafe not in ON_UNSAFE:
            raise EtaError(f"on_unsafe {self.on_unsafe!r}; valid: {', '.join(ON_UNSAFE)}")
        if not self.refusal.strip():
            raise EtaError("refusal is empty; give the sentence that a user is to read")


def _above(name: str, value: object, low: float, whole: bool) -> None:
    """A finite number, from `low` up."""
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < low:
        bound = "above 0" if 0 < low < 1 else f"from {low:g} up"
        raise EtaError(f"{name} is {value!r}; give a {'whole ' if whole else ''}number {bound}")
