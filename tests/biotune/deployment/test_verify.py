"""Whether two classifiers say the same: counted right, and never by comparing nothing."""

from __future__ import annotations

import numpy as np
import pytest

from biotune.deployment.predictor import Predictor
from biotune.deployment.verify import Agreement, compare, prepared_by_torch
from biotune.finetuning.training import ImageSubset, predict_probabilities
from biotune.images import DigitsSource

FIRST = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]], dtype=np.float32)


def test_equal_probabilities_agree_entirely():
    assert compare(FIRST, FIRST.copy()) == Agreement(label_agreement=1.0, largest_difference=0.0)


def test_agreement_is_the_share_of_equal_labels_and_the_difference_the_largest():
    second = FIRST.copy()
    second[0] = [0.45, 0.55]  # another label
    second[2] = [0.6, 0.4]  # further away, but the same label
    agreement = compare(FIRST, second)
    assert agreement.label_agreement == 3 / 4
    assert agreement.largest_difference == pytest.approx(0.3)
    assert compare(second, FIRST) == agreement


@pytest.mark.parametrize("second", [FIRST[:3], FIRST[:, :1], FIRST.T])
def test_probabilities_of_other_shapes_are_refused(second):
    with pytest.raises(ValueError, match=r"equal shape, got \(4, 2\), \("):
        compare(FIRST, second)


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"equal shape, got \(0, 2\)"):
        compare(FIRST[:0], FIRST[:0])


def test_the_exported_model_agrees_with_the_network_that_it_came_from(exported):
    prepared = exported.prepared
    indices = prepared.indices("validation")[:9][::-1]
    probabilities = Predictor(exported.path).probabilities(list(prepared.images[indices]))
    subset = ImageSubset(prepared.images, prepared.labels, indices)
    agreement = compare(probabilities, predict_probabilities(exported.backbone, subset))
    assert agreement.label_agreement == 1.0
    assert 0 < agreement.largest_difference < 1e-4


def test_torch_prepares_an_image_as_the_prepare_stage_did(exported):
    prepared = exported.prepared
    for row in prepared.indices("validation")[:5].tolist():
        again = prepared_by_torch(DigitsSource().load(row), prepared.image_size)
        assert np.array_equal(again, prepared.images[row])


def test_another_network_is_found_out(exported):
    prepared = exported.prepared
    indices = prepared.indices("validation")
    probabilities = Predictor(exported.path).probabilities(list(prepared.images[indices]))
    shuffled = np.roll(probabilities, 1, axis=1)
    agreement = compare(probabilities, shuffled)
    assert agreement.label_agreement == 0.0
    assert agreement.largest_difference > 0.1
