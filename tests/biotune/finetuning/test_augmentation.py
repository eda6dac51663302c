"""Random changes of training images: of each by itself, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from biotune.finetuning.augmentation import augmenter
from biotune.finetuning.choices import AUGMENTATIONS


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)


def changed(name: str, seed: int = 0) -> np.ndarray:
    augment = augmenter(name, seed)
    assert augment is not None
    return augment(pictures())


def test_none_is_none():
    assert augmenter("none", 0) is None


def test_what_else_draws_numbers_changes_no_image_and_is_not_changed():
    quiet, disturbed = augmenter("randaugment", 0), augmenter("randaugment", 0)
    for _ in range(3):
        expected = quiet(pictures())
        before = torch.get_rng_state()
        assert np.array_equal(disturbed(pictures()), expected)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(7)
    assert not np.array_equal(expected, changed("randaugment")), "each call draws anew"


@pytest.mark.parametrize("name", AUGMENTATIONS[1:])
def test_shape_and_type_stay_and_the_seed_decides(name):
    first = changed(name)
    assert first.shape == pictures().shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, changed(name))
    assert not np.array_equal(first, changed(name, seed=1))


def test_flip_exchanges_left_and_right_of_some_images_and_leaves_the_others():
    before, after = pictures(), changed("flip")
    flipped = [np.array_equal(a, b[:, ::-1]) for a, b in zip(after, before, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(after, before, strict=True)]
    assert all(mirrored != other for mirrored, other in zip(flipped, same, strict=True))
    assert 8 < sum(flipped) < 24


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_most_images_are_changed_and_each_in_its_own_way(name):
    same = np.repeat(pictures()[:1], 32, axis=0)
    after = augmenter(name, 0)(same)
    assert len({image.tobytes() for image in after}) > 16
