"""How much each class counts, against the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from biotune.finetuning.choices import CLASS_WEIGHTS
from biotune.finetuning.losses import EFFECTIVE_NUMBER_BETA, class_weights
from tests.biotune.finetuning import toy

LABELS = np.repeat(np.arange(3), [1000, 100, 10])


def test_without_weights_there_is_no_tensor():
    assert class_weights("none", LABELS, 3) is None


def test_balanced_is_scikit_learns_balanced_scaled_to_one_on_average():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    weights = class_weights("balanced", LABELS, 3)
    assert weights.dtype == torch.float32
    assert weights.mean() == pytest.approx(1)
    assert weights.numpy() == pytest.approx(expected / expected.mean())


def test_the_effective_number_is_a_sum_of_powers():
    numbers = [sum(EFFECTIVE_NUMBER_BETA**i for i in range(n)) for n in (1000, 100, 10)]
    weights = class_weights("effective_number", LABELS, 3)
    assert weights.mean() == pytest.approx(1)
    assert (weights[2] / weights[0]).item() == pytest.approx(numbers[0] / numbers[2], rel=1e-4)
    assert (weights[1] / weights[0]).item() == pytest.approx(numbers[0] / numbers[1], rel=1e-4)


@pytest.mark.parametrize("kind", CLASS_WEIGHTS[1:])
def test_a_class_that_is_not_there_weighs_nothing(kind):
    weights = class_weights(kind, np.array([0, 0, 2]), 4)
    assert weights[[1, 3]].tolist() == [0, 0]
    assert torch.isfinite(weights).all()


def test_the_loss_takes_weights_and_smoothing():
    backbone = toy.backbone()
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    weight = torch.tensor([1.0, 2.0, 0.5])
    assert backbone.loss(logits, targets) == cross_entropy(logits, targets)
    both = backbone.loss(logits, targets, weight=weight, label_smoothing=0.1)
    assert both == cross_entropy(logits, targets, weight=weight, label_smoothing=0.1)
