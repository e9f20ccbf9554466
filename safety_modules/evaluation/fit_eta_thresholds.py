"""Fit ETA thresholds: labelled rows scored by a pair of evaluators -> thresholds that keep a false-positive budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from safety_modules.checkpoints.format import SAFETY
from safety_modules.eta import StockGenerator
from safety_modules.eta.eta_thresholds import EtaThresholds, check_rows
from safety_modules.eta.evaluators.head import Assess
from safety_modules.eta.evaluators.protocols import Messages, PostEvaluator, PreEvaluator
from safety_modules.pipeline import SafePipeline
from safety_modules.prompt.images import ImageError
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import CLEAN

Answer = Callable[[Sequence[Messages]], Sequence[str]]


def fit(
    samples: Sequence[Sample],
    pre: PreEvaluator,
    post: PostEvaluator,
    budget: float,
    answer: Answer | None = None,
    batch_size: int = 16,
) -> EtaThresholds:
    """Score rows and choose both thresholds.

    Args:
        samples: clean and risky rows in the proportions of use; the evaluators' own thresholds do not matter.
        budget: fraction of clean exchanges that each evaluator may flag, in (0, 1).
        answer: gives the plain answers that the post-evaluator scores. None takes the rows' own, which are not a
            model's where they were written to teach it to refuse.

    Raises:
        DataError: an image cannot be read, or a row has no answer.
        EtaError: too few clean rows, or a score that cannot be used.
    """
    risky = [sample.risk_type != CLEAN for sample in samples]
    check_rows(risky.count(False), budget)  # before anything is computed
    pre_scores: list[float | None] = []
    post_scores: list[float] = []
    for start in tqdm(range(0, len(samples), batch_size), desc="thresholds", leave=False):
        rows = samples[start : start + batch_size]
        exchanges = [sample.messages() for sample in rows]
        try:
            answers = answer(exchanges) if answer else [_own_answer(sample) for sample in rows]
            pre_scores += pre(exchanges)
            post_scores += post(exchanges, answers)
        except ImageError as error:
            raise DataError(f"{rows[0].source} to {rows[-1].source}: {error}") from error
    return EtaThresholds.fit(risky, pre_scores, post_scores, budget, pre.unit, post.unit)


def load_answerer(
    folder: Path, device: str = "cpu", dtype: str = "auto", max_new_tokens: int = 128
) -> tuple[Answer, Assess | None]:
    """A model's greedy answers to exchanges, without hint and policy; and the assessments of its head, if it has one.

    Args:
        folder: of a model with safety modules, or of any stock model with its processor.
    """
    if not (folder / SAFETY).is_dir():
        generator = StockGenerator.from_pretrained(folder, device, dtype)
        return lambda exchanges: generator.greedy(exchanges, max_new_tokens).answers, None
    pipeline = SafePipeline.from_pretrained(folder, device=device, dtype=dtype)
    return lambda exchanges: pipeline.answer(exchanges, [""] * len(exchanges), max_new_tokens), pipeline.assess


def _own_answer(sample: Sample) -> str:
    """The row's answer; an error where it has none."""
    if not sample.answer:
        raise DataError(f"{sample.source}: has no answer to score; give a model that answers, or add the answer")
    return sample.answer
