"""How good a classifier's probabilities are.

scikit-learn, SciPy and torchmetrics compute everything; here is only the choice, and the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from biotune.finetuning.choices import Metric

CALIBRATION_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017 (arXiv 1706.04599)."""

BOOTSTRAP_RESAMPLES = 2000


def validation_scores(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    metric: Metric = "balanced_accuracy",
) -> tuple[float, float]:
    """The metric in [0, 1], higher is better, and the multi-class Brier score in [0, 2].

    Args:
        probabilities: [n, classes], finite, rows sum to 1.
        labels: class indices [n]; every class occurs.
        metric: one of :data:`~biotune.finetuning.choices.METRICS`.

    Raises:
        ValueError: for ``auroc`` of more than two classes.
    """
    if metric == "auroc":
        check_metric(metric, probabilities.shape[1])
        score = roc_auc_score(labels, probabilities[:, 1])
    else:
        score = _OF_LABELS[metric](labels, probabilities.argmax(axis=1))
    return float(score), _brier(probabilities, labels)


def check_metric(metric: Metric, classes: int) -> None:
    """Whether a metric is defined for so many classes.

    Raises:
        ValueError: if not.
    """
    if metric == "auroc" and classes != 2:
        raise ValueError(
            f"metric: auroc is for two classes, here are {classes}; choose balanced_accuracy, "
            "accuracy or f1_macro"
        )


_OF_LABELS: Mapping[str, Callable[..., float]] = {
    "balanced_accuracy": balanced_accuracy_score,
    "accuracy": accuracy_score,
    "f1_macro": partial(f1_score, average="macro", zero_division=0.0),
}


def classifier_scores(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, float | list[float]]:
    """Every figure that is reported of a finished classifier.

    Args:
        probabilities: [n, classes], finite, rows sum to 1.
        labels: class indices [n].

    Returns:
        ``accuracy`` with its percentile bootstrap ``accuracy_interval_95`` [low, high],
        ``balanced_accuracy``, ``f1_macro``, ``cohen_kappa``, ``average_precision_macro`` (one
        class against the rest), ``expected_calibration_error`` and ``brier``; of two classes also
        ``auroc``.
    """
    predicted = probabilities.argmax(axis=1)
    present = np.unique(labels)
    one_hot = np.eye(probabilities.shape[1])[labels]
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "accuracy_interval_95": mean_interval((predicted == labels).astype(np.float64)),
        "balanced_accuracy": float(
            np.mean([np.mean(predicted[labels == c] == c) for c in present])
        ),
        "f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "cohen_kappa": float(cohen_kappa_score(labels, predicted)),
        "average_precision_macro": float(
            average_precision_score(one_hot[:, present], probabilities[:, present], average="macro")
        ),
        "expected_calibration_error": _calibration_error(probabilities, labels),
        "brier": _brier(probabilities, labels),
        **_auroc(probabilities, labels),
    }


def _auroc(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    if probabilities.shape[1] != 2 or len(np.unique(labels)) != 2:
        return {}
    return {"auroc": float(roc_auc_score(labels, probabilities[:, 1]))}


def mean_interval(values: NDArray[np.float64]) -> list[float]:
    """95 % percentile bootstrap interval [low, high] of a mean; the draws are always the same.

    Of a single value, nothing is known of the spread: the interval is that value.
    """
    if len(values) == 1:
        return [float(values[0]), float(values[0])]
    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=BOOTSTRAP_RESAMPLES,
        method="percentile",
        batch=100,  # resamples held in memory at a time
        rng=np.random.default_rng(0),
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def class_scores(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: Sequence[str]
) -> list[dict[str, str | float | int]]:
    """Precision, recall, F1 and number of images of every class, in class order."""
    columns = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0.0
    )
    return [
        {
            "class": name,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "images": int(images),
        }
        for name, precision, recall, f1, images in zip(classes, *columns, strict=True)
    ]


def _brier(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    # In float64, and rescaled, because scikit-learn insists on rows that sum to one.
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    classes = np.arange(probabilities.shape[1])
    return float(brier_score_loss(labels, exact, labels=classes, scale_by_half=False))


def _calibration_error(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    import torch
    from torchmetrics.functional.classification import (  # slow to import, and seldom needed
        multiclass_calibration_error,
    )

    error = multiclass_calibration_error(
        torch.from_numpy(probabilities),
        torch.from_numpy(labels),
        num_classes=probabilities.shape[1],
        n_bins=CALIBRATION_BINS,
    )
    return float(error)
