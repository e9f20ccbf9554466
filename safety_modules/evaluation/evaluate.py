"""Evaluate: a model on labelled rows -> records, and records -> numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from safety_modules.config import SafetyConfig
from safety_modules.evaluation.metrics import auroc, head_metrics, probability_quality, rate
from safety_modules.judges.phrases import PhraseJudge, same
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.pipeline import SafePipeline, SafeResult
from safety_modules.prompt.images import ImageError
from safety_modules.sample import DataError, Sample
from safety_modules.taxonomy import CLEAN, Taxonomy


@dataclass(frozen=True)
class Record:
    """One evaluated exchange.

    Attributes:
        sample: the row.
        alone: answer of the weights alone, without assessment, hint or policy.
        result: answer, assessment and decision of the whole pipeline; None for a base model, which has no modules.
    """

    sample: Sample
    alone: str
    result: SafeResult | None

    @property
    def answer(self) -> str:
        """What a user of this model gets."""
        return self.result.answer if self.result else self.alone

    @property
    def judged(self) -> SafeResult:
        """`result`, of a model with modules.

        Raises:
            ValueError: a base model has no assessment.
        """
        if self.result is None:
            raise ValueError(f"{self.sample.source}: a base model's record has no assessment; run with assess=True")
        return self.result


def base_pipeline(base: str | Path, taxonomy: Taxonomy | None = None) -> SafePipeline:
    """A base model as it is: no safety tokens in its prompt; its untrained head is not used."""
    config = SafetyConfig(
        head_tokens=0, llm_tokens=0, projector="mlp", projector_width=1, query="image", attention_heads=1
    )
    return SafePipeline(SafeVLM.attach(base, config, taxonomy))


def run(
    pipeline: SafePipeline,
    samples: Sequence[Sample],
    assess: bool,
    batch_size: int = 64,
    max_new_tokens: int = 40,
    title: str = "evaluate",
) -> list[Record]:
    """Answer every sample.

    Args:
        assess: whether the pipeline's modules are trained; False for a base model.

    Raises:
        DataError: an image cannot be read; names the row.
    """
    records = []
    for start in tqdm(range(0, len(samples), batch_size), desc=title, leave=False):
        rows = samples[start : start + batch_size]
        exchanges = [sample.messages() for sample in rows]
        try:
            alone = pipeline.answer(exchanges, [""] * len(rows), max_new_tokens)
        except ImageError as error:
            raise DataError(f"{rows[0].source} to {rows[-1].source}: {error}") from error
        results = _results(pipeline, exchanges, alone, max_new_tokens) if assess else [None] * len(rows)
        records += [Record(*row) for row in zip(rows, alone, results)]
    return records


def _results(
    pipeline: SafePipeline, exchanges: Sequence[list[dict]], alone: Sequence[str], limit: int
) -> list[SafeResult]:
    """The pipeline's results; an exchange that the policy allows keeps the answer that the weights gave alone."""
    judged = pipeline.decide(exchanges)
    allowed = [i for i, (_, decision) in enumerate(judged) if decision.action == "allow" and pipeline.eta is None]
    answered = {i: alone[i] for i in allowed}  # with ETA none: it evaluates the answers that the policy allows
    return pipeline.finish(exchanges, judged, limit, known_answers=answered)


def fraction(records: Sequence[Record], test: Callable[[Record], bool], name: str) -> dict[str, float]:
    """`{name: fraction of records that pass the test, name_n: how many records there are}`."""
    return {name: rate([test(record) for record in records]), f"{name}_n": len(records)}


def safety_rates(records: Sequence[Record], judge: PhraseJudge) -> dict[str, float]:
    """unsafe_rate on risky rows and over_refusal_rate on clean ones, of the whole pipeline, each with its n."""
    risky = [record for record in records if record.sample.risk_type != CLEAN]
    clean = [record for record in records if record.sample.risk_type == CLEAN]
    return {
        **fraction(risky, lambda r: judge.unsafe(r.answer, r.sample.risk_level), "unsafe_rate"),
        **fraction(risky, lambda r: judge.unsafe(r.alone, r.sample.risk_level), "unsafe_rate_without_hints"),
        **fraction(clean, lambda r: judge.over_refuses(r.answer), "over_refusal_rate"),
    }


def exact(record: Record) -> bool:
    """Whether a clean row got its exact answer."""
    return same(record.answer, record.sample.answer)


def head_rates(records: Sequence[Record], taxonomy: Taxonomy) -> dict[str, float]:
    """Head metrics with their n; a row's prediction is its most probable type and level."""
    index = taxonomy.type_index
    metrics = head_metrics(
        [index(record.sample.risk_type) for record in records],
        [index(record.judged.assessment.risk_type) for record in records],
        [record.sample.risk_level for record in records],
        [record.judged.assessment.risk_level for record in records],
    )
    return {**metrics, **{f"{name}_n": len(records) for name in metrics}}


def trust_rates(records: Sequence[Record], taxonomy: Taxonomy) -> dict[str, float]:
    """How reliable the head's probabilities and the policy are, each number with its n.

    Returns:
        ece_type, ece_level, brier_type, brier_level; auroc of risky against clean exchanges; false_positive_rate, the
        fraction of clean exchanges that the policy did not simply allow.
    """
    assessments = [record.judged.assessment for record in records]
    types = [taxonomy.type_index(record.sample.risk_type) for record in records]
    levels = [record.sample.risk_level for record in records]
    numbers, _ = probability_quality("type", np.array([list(a.types.values()) for a in assessments]), np.array(types))
    numbers |= probability_quality("level", np.array([a.levels for a in assessments]), np.array(levels))[0]
    numbers["auroc"] = auroc([a.risk for a in assessments], [r.sample.risk_type != CLEAN for r in records])
    clean = [record for record in records if record.sample.risk_type == CLEAN]
    return {
        **numbers,
        **{f"{name}_n": len(records) for name in numbers},
        **fraction(clean, lambda record: record.judged.action != "allow", "false_positive_rate"),
    }
