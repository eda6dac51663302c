"""Whether two classifiers say the same: counted right, and never by comparing nothing."""

from __future__ import annotations

import numpy as np
import pytest

from biotune.deployment.verify import Agreement, compare, onnx_probabilities
from biotune.finetuning.training import ImageSubset, predict_probabilities

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


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_exported_model_runs_batch_by_batch_in_the_order_of_the_indices(exported, batch_size):
    prepared = exported.prepared
    indices = prepared.indices("validation")[:9][::-1]
    batches = list(onnx_probabilities(exported.path, prepared.images, indices, batch_size))
    sizes = [batch_size] * (9 // batch_size) + [9 % batch_size] * bool(9 % batch_size)
    assert [len(batch) for batch in batches] == sizes
    subset = ImageSubset(prepared.images, prepared.labels, indices)
    agreement = compare(np.concatenate(batches), predict_probabilities(exported.backbone, subset))
    assert agreement.label_agreement == 1.0
    assert 0 < agreement.largest_difference < 1e-4


def test_another_network_is_found_out(exported):
    prepared = exported.prepared
    indices = prepared.indices("validation")
    (probabilities,) = onnx_probabilities(exported.path, prepared.images, indices, len(indices))
    shuffled = np.roll(probabilities, 1, axis=1)
    agreement = compare(probabilities, shuffled)
    assert agreement.label_agreement == 0.0
    assert agreement.largest_difference > 0.1
