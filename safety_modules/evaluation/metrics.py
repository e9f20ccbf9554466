"""Metrics: labels, predictions and verdicts -> numbers. Pure functions; fractions are in [0, 1]."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score


def rate(flags: Sequence[bool]) -> float:
    """Fraction of true flags; NaN of none."""
    return sum(flags) / len(flags) if flags else float("nan")


def head_metrics(
    types: Sequence[int], predicted_types: Sequence[int], levels: Sequence[int], predicted_levels: Sequence[int]
) -> dict[str, float]:
    """F1 and accuracy of the head, over the classes that occur in the labels.

    Args:
        types, levels: labels as class indices; the predictions in the same order.

    Returns:
        type_macro_f1, type_accuracy, level_accuracy.
    """
    labelled = sorted(set(types))
    return {
        "type_macro_f1": float(f1_score(types, predicted_types, average="macro", labels=labelled, zero_division=0.0)),
        "type_accuracy": rate([a == b for a, b in zip(types, predicted_types)]),
        "level_accuracy": rate([a == b for a, b in zip(levels, predicted_levels)]),
    }


def confusion(types: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Counts: row = label, column = prediction, both in the order of `names`."""
    return confusion_matrix(types, predicted, labels=list(names)).tolist()


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence lies in [low, high): how many, their mean confidence, and the fraction that is correct."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> list[Bin]:
    """Confidence against accuracy, in bins of equal width; empty ones are left out.

    Source: Guo et al., 2017, section 2.

    Args:
        confidences: (B,), probability of the predicted class, in [0, 1]; 1 belongs to the last bin.
        correct: (B,), whether the prediction is right.
    """
    values, right = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=float)
    edges = np.arange(1, bins) / bins  # compared, not multiplied: 0.29 * 100 is below 29
    place = np.searchsorted(edges, values, side="right")  # (B,)
    masks = [(i, place == i) for i in range(bins) if (place == i).any()]
    return [
        Bin(i / bins, (i + 1) / bins, int(m.sum()), float(values[m].mean()), float(right[m].mean())) for i, m in masks
    ]


def ece(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance of accuracy and confidence over all rows; NaN for none.

    Source: Guo et al., 2017, equation 3.
    """
    total = sum(row.n for row in bins)
    return sum(row.n * abs(row.accuracy - row.confidence) for row in bins) / total if total else float("nan")


def brier(probabilities: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Brier score of several classes: mean over rows of the squared distance to the label, in [0, 2].

    Source: Brier, 1950.

    Args:
        probabilities: (B, C). labels: (B,), class indices.
    """
    truth = np.eye(probabilities.shape[1])[np.asarray(labels)]  # (B, C)
    return float(((probabilities - truth) ** 2).sum(1).mean())


def probability_quality(name: str, probabilities: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], list[Bin]]:
    """`{ece_name: ECE, brier_name: Brier score}` of one of the head's outputs, and its reliability bins.

    Args:
        probabilities: (B, C). labels: (B,), class indices.
    """
    bins = reliability(probabilities.max(-1), probabilities.argmax(-1) == labels)
    return {f"ece_{name}": ece(bins), f"brier_{name}": brier(probabilities, labels)}, bins


def auroc(scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray) -> float:
    """Probability that a positive row has a higher score than a negative one; NaN where only one label occurs."""
    return float(roc_auc_score(labels, scores)) if len(set(map(bool, labels))) == 2 else float("nan")


def mean_spread(values: Sequence[float]) -> dict[str, float]:
    """`mean`, `spread` (sample standard deviation, 0 of one value) and `n`."""
    return {
        "mean": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
        "n": len(values),
    }
