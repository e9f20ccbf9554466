"""Metrics: labels, predictions and verdicts -> numbers. Pure functions; fractions are in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.metrics import confusion_matrix, f1_score


def rate(flags: Sequence[bool]) -> float:
    """Share of true flags; NaN for none."""
    return sum(flags) / len(flags) if flags else float("nan")


def head_metrics(
    types: Sequence[int], predicted_types: Sequence[int], levels: Sequence[int], predicted_levels: Sequence[int]
) -> dict[str, float]:
    """How well the head judges, over the classes that occur in the labels.

    Args:
        types, levels: labels as class indices; the predictions in the same order.

    Returns:
        type_macro_f1, type_accuracy, level_accuracy.
    """
    known = sorted(set(types))
    return {
        "type_macro_f1": float(f1_score(types, predicted_types, average="macro", labels=known, zero_division=0.0)),
        "type_accuracy": rate([a == b for a, b in zip(types, predicted_types)]),
        "level_accuracy": rate([a == b for a, b in zip(levels, predicted_levels)]),
    }


def confusion(types: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Counts: row = label, column = prediction, both in the order of `names`."""
    return confusion_matrix(types, predicted, labels=list(names)).tolist()
