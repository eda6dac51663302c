"""Every figure, on examples small enough to compute by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from biotune.finetuning.metrics import (
    class_scores,
    classifier_scores,
    mean_interval,
    validation_scores,
)

# Four images: two of class 0 (one taken for 1), one of class 1, one of class 2.
LABELS = np.array([0, 0, 1, 2])
PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.3, 0.65, 0.05], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9]], dtype=np.float32
)
# Σ (p − onehot)², image by image.
BRIER = np.mean([0.09 + 0.04 + 0.01, 0.49 + 0.4225 + 0.0025, 0.01 + 0.04 + 0.01, 0.0025 * 2 + 0.01])


def test_validation_scores_are_balanced_accuracy_and_brier_score():
    accuracy, brier = validation_scores(PROBABILITIES, LABELS)
    assert accuracy == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert brier == pytest.approx(BRIER, abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("accuracy", 3 / 4), ("f1_macro", (2 / 3 + 2 / 3 + 1) / 3), ("balanced_accuracy", 5 / 6)],
)
def test_validation_may_be_scored_by_another_metric(metric, expected):
    assert validation_scores(PROBABILITIES, LABELS, metric)[0] == pytest.approx(expected)


def test_auroc_is_how_often_the_second_class_ranks_higher():
    probabilities = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.65, 0.35]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1])
    assert validation_scores(probabilities, labels, "auroc")[0] == pytest.approx(3 / 4)
    assert classifier_scores(probabilities, labels)["auroc"] == pytest.approx(3 / 4)


def test_auroc_of_more_than_two_classes_is_refused():
    with pytest.raises(ValueError, match="auroc is for two classes, here are 3"):
        validation_scores(PROBABILITIES, LABELS, "auroc")


def test_every_figure_of_a_classifier_is_what_a_hand_computes():
    scores = classifier_scores(PROBABILITIES, LABELS)
    assert set(scores) == {
        "accuracy",
        "accuracy_interval_95",
        "balanced_accuracy",
        "f1_macro",
        "cohen_kappa",
        "average_precision_macro",
        "expected_calibration_error",
        "brier",
    }
    assert scores["accuracy"] == 3 / 4
    assert scores["balanced_accuracy"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    # F1 of each class: precision 1, recall 1/2; 1/2, 1; 1, 1.
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # Agreement 3/4; by chance (2·1 + 1·2 + 1·1)/16.
    assert scores["cohen_kappa"] == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16))
    # Sorted by p(0): 0, 0, …: 1. By p(1): 1, 0, …: 1. By p(2): 2, …: 1.
    assert scores["average_precision_macro"] == pytest.approx(1.0)
    assert scores["brier"] == pytest.approx(BRIER, abs=1e-6)


def test_average_precision_falls_where_another_class_ranks_above():
    probabilities = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9]], dtype=np.float32)
    # Class 0, by p(0): wrong, right, right → (1/2 + 2/3)/2 for images 0 and 2.
    # Class 1, by p(1): right, wrong, wrong, right → (1 + 2/4)/2 for images 1 and 3.
    scores = classifier_scores(probabilities, np.array([0, 1, 0, 1]))
    expected = ((1 / 2 + 2 / 3) / 2 + (1 + 2 / 4) / 2) / 2
    assert scores["average_precision_macro"] == pytest.approx(expected)


def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy():
    # Two images at confidence 0.9 of which one is right, two at 0.65 that are both right.
    confidence = np.array([0.9, 0.9, 0.65, 0.65], dtype=np.float32)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    error = classifier_scores(probabilities, np.array([0, 1, 0, 0]))["expected_calibration_error"]
    assert error == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.65 - 1.0), abs=1e-6)


def test_confidences_are_compared_within_fifteenths():
    # Each in a bin of its own, one right and one wrong; in tenths they would share one.
    confidence = np.array([0.62, 0.68], dtype=np.float32)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    error = classifier_scores(probabilities, np.array([0, 1]))["expected_calibration_error"]
    assert error == pytest.approx((abs(0.62 - 1) + abs(0.68 - 0)) / 2, abs=1e-6)


def test_a_perfect_classifier_has_perfect_figures():
    labels = np.array([0, 1, 2, 1, 0])
    scores = classifier_scores(np.eye(3, dtype=np.float32)[labels], labels)
    assert scores.pop("accuracy_interval_95") == [1.0, 1.0]
    assert scores.pop("brier") == scores.pop("expected_calibration_error") == 0.0
    assert set(scores.values()) == {1.0}


def test_a_class_that_is_not_in_the_test_does_not_count():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]], dtype=np.float32)
    scores = classifier_scores(probabilities, np.array([0, 1, 1]))
    assert scores["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert all(np.all(np.isfinite(value)) for value in scores.values())


def test_rounded_probabilities_are_no_error():
    probabilities = np.full((3, 3), 0.3333, dtype=np.float32)  # sums to 0.9999
    assert validation_scores(probabilities, np.arange(3))[1] == pytest.approx(2 / 3, abs=1e-3)


def test_the_interval_holds_the_mean():
    values = np.array([1.0] * 80 + [0.0] * 20)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    # The normal approximation of a proportion's interval, to a good hundredth.
    half_width = 1.96 * math.sqrt(0.8 * 0.2 / 100)
    assert [low, high] == pytest.approx([0.8 - half_width, 0.8 + half_width], abs=0.015)


def test_the_interval_is_always_the_same():
    values = np.random.default_rng(3).normal(size=50)
    first = mean_interval(values)
    assert first[0] < values.mean() < first[1]
    assert mean_interval(values) == first


def test_the_interval_narrows_with_more_images():
    few, many = (mean_interval(np.tile([1.0, 0.0, 1.0, 1.0], n)) for n in (10, 1000))
    assert many[1] - many[0] < (few[1] - few[0]) / 5


def test_each_class_has_its_precision_recall_f1_and_number_of_images():
    rows = class_scores(PROBABILITIES.argmax(axis=1), LABELS, ["ash", "birch", "cedar"])
    assert rows == [
        {"class": "ash", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "images": 2},
        {
            "class": "birch",
            "precision": 0.5,
            "recall": 1.0,
            "f1": pytest.approx(2 / 3),
            "images": 1,
        },
        {"class": "cedar", "precision": 1.0, "recall": 1.0, "f1": 1.0, "images": 1},
    ]


def test_a_class_never_predicted_and_never_seen_scores_zero():
    rows = class_scores(np.array([0, 1]), np.array([0, 1]), ["ash", "birch", "cedar"])
    assert rows[2] == {"class": "cedar", "precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 0}


def test_the_interval_of_a_single_value_is_that_value() -> None:
    assert mean_interval(np.array([0.25])) == [0.25, 0.25]
