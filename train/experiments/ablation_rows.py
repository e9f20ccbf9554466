"""The rows of the ablation table, and the overrides behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

CLEAN_PERCENTS = (10, 30, 50, 70, 90)  # of clean rows in a training set


@dataclass(frozen=True)
class AblationScale:
    """Rows of the world by split, of a set with a chosen fraction of clean rows, of stage 2; overrides of stages."""

    sizes: dict[str, int]
    clean_set: int
    stage2: int
    overrides: tuple[str, ...] = ()


FULL = AblationScale({"train": 24000, "validation": 100, "test": 1700}, 10000, 6400)
SHORT_SIZES = {"train": 320, "validation": 4, "test": 64}
SHORT = AblationScale(SHORT_SIZES, 100, 64, ("--trainer.max_steps", "2"))  # shows that it runs

LORA, BASE_WEIGHTS, LLM_TOKENS, MODULES = r"base\..*lora_.*", r"base\..*", r"safety\.llm_tokens\..*", r"safety\..*"
NO_TOKEN_RULES = {LORA: 2e-3, BASE_WEIGHTS: None, MODULES: None}
CO_TRAINED_RULES = {LORA: 2e-3, BASE_WEIGHTS: None, LLM_TOKENS: 1e-3, MODULES: 5e-4}
HEADS = {  # head -> overrides of the head-only stage
    "default": [],
    "k0": ["--safety.head_tokens", "0", "--safety.llm_tokens", "0"],
    "k64": ["--safety.head_tokens", "64", "--safety.llm_tokens", "64"],
    "mlp": ["--safety.projector", "mlp"],
    "image": ["--safety.query", "image"],
    "paper": ["--safety.query", "paper"],
}
LANGUAGES = {  # language model -> the head that it starts from, overrides of stage 2
    "default": ("default", []),
    "k0": ("k0", ["--rules", json.dumps(NO_TOKEN_RULES)]),
    "k64": ("k64", []),
    "no_hints": ("default", ["--data.hint_rate", "0"]),
    "half_hints": ("default", ["--data.hint_rate", "0.5"]),
    "co_trained": ("default", ["--rules", json.dumps(CO_TRAINED_RULES)]),
}


class AblationRow(NamedTuple):
    """One row of the table.

    Attributes:
        title: what was changed.
        head: a key of HEADS, "clean_N", "co_trained" (stage 2 trained it further), or None: no head, no hint.
        language: a key of LANGUAGES, "clean_N", or "base": no stage 2.
    """

    title: str
    head: str | None
    language: str

    @property
    def file(self) -> str:
        """Name of the row's results."""
        return f"{self.head}-{self.language}.json"


ROWS = [
    AblationRow("default: joint query, C-Abstractor, K = 8, hints in 90 %", "default", "default"),
    AblationRow("no safety tokens (K = 0)", "k0", "k0"),
    AblationRow("K = 64", "k64", "k64"),
    AblationRow("language model's tokens only, no head tokens", "k0", "default"),
    AblationRow("head tokens only, language model has none", "default", "k0"),
    AblationRow("language model alone: tokens and stage 2, no head", None, "no_hints"),
    AblationRow("head alone: no stage 2, the base gets hints", "default", "base"),
    AblationRow("MLP in place of the C-Abstractor", "mlp", "default"),
    AblationRow("query: image", "image", "default"),
    AblationRow("query: paper", "paper", "default"),
    AblationRow("hints never in training", "default", "no_hints"),
    AblationRow("hints in 50 % of risky training rows", "default", "half_hints"),
    AblationRow("head co-trained in stage 2", "co_trained", "co_trained"),
    *(AblationRow(f"{n} % clean rows, 10,000 rows in all", f"clean_{n}", f"clean_{n}") for n in CLEAN_PERCENTS),
]
