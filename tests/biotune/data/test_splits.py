"""Splits and folds: exact, stratified, repeatable, and clear when they cannot be made."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from biotune.data.splits import assign_splits, resample, stratified_folds, stratified_split

class_sizes = st.lists(st.integers(2, 30), min_size=2, max_size=8)


def labels_of(sizes: list[int]) -> np.ndarray:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(labels)


@given(sizes=class_sizes, data=st.data())
def test_counts_are_exact_and_no_class_is_lost(sizes, data):
    labels, classes = labels_of(sizes), len(sizes)
    assume(len(labels) > 2 * classes)
    train = data.draw(st.integers(classes, len(labels) - classes - 1))
    validation = data.draw(st.integers(classes, len(labels) - train - 1))
    splits = stratified_split(labels, train=train, validation=validation, seed=0)
    assert np.sum(splits == "train") == train
    assert np.sum(splits == "validation") == validation
    assert np.sum(splits == "test") == len(labels) - train - validation
    for split in ("train", "validation"):
        assert set(labels[splits == split]) == set(range(classes))


@given(sizes=st.lists(st.integers(20, 60), min_size=2, max_size=6), seed=st.integers(0, 9))
def test_each_class_is_within_one_image_of_its_share(sizes, seed):
    labels = labels_of(sizes)
    splits = stratified_split(labels, train=len(labels) // 2, validation=len(sizes), seed=seed)
    for code, size in enumerate(sizes):
        share = np.sum((splits == "train") & (labels == code))
        assert abs(share - size * (len(labels) // 2) / len(labels)) <= 1


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    labels = labels_of([40, 40])
    first, again, other = (
        stratified_split(labels, train=20, validation=20, seed=seed) for seed in (1, 1, 2)
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_without_counts_seventy_per_cent_are_trained_on_and_fifteen_validated_on():
    splits = stratified_split(labels_of([100, 100]), train=None, validation=None, seed=0)
    assert [int(np.sum(splits == s)) for s in ("train", "validation", "test")] == [140, 30, 30]


@pytest.mark.parametrize(
    ("sizes", "train", "validation", "message"),
    [
        ([5, 5], 8, 2, "8 train and 2 validation .* of 10 images .* test split: ask for fewer"),
        ([5, 5], 80, 20, "ask for fewer"),
        ([5, 5, 5], 2, 5, "2 train images .* each of the 3 classes .* ask for 3 or more"),
        ([5, 5, 5], 5, 0, "0 validation images .* ask for 3 or more"),
        ([5, 1, 5], 3, 3, "class 1 has 1 image.* add images or remove the class"),
        ([5, 5], 9, 0, "9 train images .* only 8 to draw"),
    ],
)
def test_impossible_splits_say_what_to_do(sizes, train, validation, message):
    with pytest.raises(ValueError, match=message):
        stratified_split(labels_of(sizes), train=train, validation=validation, seed=0)


def test_errors_name_the_class_when_the_labels_are_names():
    with pytest.raises(ValueError, match="class oak has 1 image"):
        stratified_split(np.array(["ash"] * 9 + ["oak"]), train=3, validation=3, seed=0)


LABELS = np.tile([0, 1], 50)
WITH_VALIDATION = ["train"] * 60 + ["validation"] * 20 + ["test"] * 20
WITHOUT_VALIDATION = ["train"] * 80 + ["test"] * 20


def test_predefined_splits_are_taken_whole_without_counts():
    splits = assign_splits(LABELS, WITH_VALIDATION, train=None, validation=None, seed=0)
    assert splits.tolist() == WITH_VALIDATION


def test_a_count_draws_from_its_predefined_split_and_leaves_the_others_out():
    splits = assign_splits(LABELS, WITH_VALIDATION, train=10, validation=6, seed=0)
    kept = splits != ""
    assert splits[kept].tolist() == np.array(WITH_VALIDATION)[kept].tolist()
    assert [int(np.sum(splits == s)) for s in ("train", "validation", "test")] == [10, 6, 20]
    assert np.bincount(LABELS[splits == "train"]).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("train", "validation", "expected"), [(None, None, [68, 12, 20]), (30, 40, [30, 40, 20])]
)
def test_a_missing_validation_split_is_carved_out_of_train(train, validation, expected):
    splits = assign_splits(LABELS, WITHOUT_VALIDATION, train=train, validation=validation, seed=0)
    assert [int(np.sum(splits == s)) for s in ("train", "validation", "test")] == expected
    assert set(splits[80:]) == {"test"}


def test_more_than_a_predefined_split_holds_is_an_error():
    with pytest.raises(ValueError, match=r"61 train images .* only 60"):
        assign_splits(LABELS, WITH_VALIDATION, train=61, validation=None, seed=0)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_class_that_a_predefined_split_lacks_is_an_error(split):
    names = np.array(["ash", "oak", "ash", "oak", "ash", "oak"])
    given_splits = ["train", "train", "validation", "validation", "test", "test"]
    given_splits[given_splits.index(split)] = "test"
    with pytest.raises(ValueError, match=f"the {split} split has no image of class ash"):
        assign_splits(names, given_splits, train=None, validation=None, seed=0)


@given(sizes=st.lists(st.integers(4, 20), min_size=2, max_size=6), folds=st.integers(1, 4))
def test_folds_are_disjoint_complete_and_stratified(sizes, folds):
    labels = labels_of(sizes)
    parts = stratified_folds(labels, folds, seed=0)
    assert len(parts) == folds
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part in parts:
        assert part.dtype == np.int64
        counts = np.bincount(labels[part], minlength=len(sizes))
        assert np.all(np.abs(counts - np.array(sizes) / folds) < 1)


def test_folds_depend_on_the_seed_alone():
    labels = labels_of([20, 20])
    first, again, other = (stratified_folds(labels, 2, seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("folds", "message"), [(0, "at least 1, got 0"), (3, "3 folds .* class 1 (2): use fewer folds")]
)
def test_impossible_folds_say_what_to_do(folds, message):
    with pytest.raises(ValueError, match=message.replace("(2)", re.escape("(2)"))):
        stratified_folds(labels_of([5, 2]), folds, seed=0)


@given(sizes=class_sizes, data=st.data(), seed=st.integers(0, 99))
def test_resampling_divides_all_images_into_two_splits_with_every_class_in_both(sizes, data, seed):
    labels, classes = labels_of(sizes), len(sizes)
    validation = data.draw(st.integers(classes, len(labels) - classes))
    train_indices, validation_indices = resample(labels, validation, seed)
    assert sorted([*train_indices, *validation_indices]) == list(range(len(labels)))
    assert len(validation_indices) == validation
    for part in (train_indices, validation_indices):
        assert set(labels[part]) == set(range(classes))


def test_resampling_is_repeatable_and_another_seed_divides_differently():
    labels = labels_of([40, 40])
    first, again, other = (resample(labels, 40, seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
