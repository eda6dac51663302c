"""Which image is for training, for validation and for the test; and folds of a split.

All draws are stratified: every class is represented in proportion to its size, and by at least
one image where the split is learned from or chosen by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")

TRAIN_SHARE: Final = 0.70
"""Share of all images that is trained on, where no number is given."""
VALIDATION_SHARE: Final = 0.15
"""Share of all images (of the train folder, if there are split folders) to validate on."""


def stratified_split(
    labels: NDArray[Any], *, train: int | None, validation: int | None, seed: int
) -> NDArray[np.str_]:
    """Divide images into train, validation and test; what is not asked for goes to the test split.

    Every class gets a share of ``train`` and ``validation`` in proportion to its size (largest
    remainder), but at least one image of each, so that small classes are not lost.

    Args:
        labels: class of every image, ids or names, ``[N]``.
        train: how many images to train on; ``None`` for 70 % of them.
        validation: how many images to validate on; ``None`` for 15 % of them.
        seed: the same seed and labels give the same split.

    Returns:
        ``"train"``, ``"validation"`` or ``"test"`` for every image, ``[N]``; the counts are exact.

    Raises:
        ValueError: if there are fewer images than asked for, none is left for the test split, a
            count is smaller than the number of classes, or a class has fewer than two images.
    """
    total = len(labels)
    train = round(TRAIN_SHARE * total) if train is None else train
    validation = round(VALIDATION_SHARE * total) if validation is None else validation
    if train + validation >= total:
        raise ValueError(
            f"{train} train and {validation} validation images were asked for, but of {total} "
            f"images at least one must be left for the test split: ask for fewer"
        )
    rng = np.random.default_rng(seed)
    splits = np.full(total, "test", dtype="<U10")
    splits[_draw(labels, np.arange(total), train, "train", rng, leave=1)] = "train"
    rest = np.flatnonzero(splits == "test")
    splits[_draw(labels, rest, validation, "validation", rng)] = "validation"
    return splits


def assign_splits(
    labels: NDArray[Any],
    predefined: Sequence[str] | None,
    *,
    train: int | None,
    validation: int | None,
    seed: int,
) -> NDArray[np.str_]:
    """The split of every image, respecting the splits that a dataset comes with, if it has any.

    Without predefined splits this is :func:`stratified_split`. With them, the test split is taken
    whole, and a count draws that many images of its split, ``None`` takes them all. Where there is
    no validation split, it is drawn from the training images (``None``: 15 % of them).

    Args:
        labels: class of every image, ids or names, ``[N]``.
        predefined: the split that every image comes with, ``[N]``; or None.
        train: how many images to train on, or None.
        validation: how many images to validate on, or None.
        seed: the same seed and input give the same splits.

    Returns:
        ``"train"``, ``"validation"``, ``"test"``, or ``""`` for an image that is left out, ``[N]``.

    Raises:
        ValueError: as :func:`stratified_split`; or for a class without an image to train on or to
            validate on, or no image to test on.
    """
    if predefined is None:
        return stratified_split(labels, train=train, validation=validation, seed=seed)
    given = np.asarray(predefined, dtype="<U10")
    _check_predefined(labels, given)
    rng = np.random.default_rng(seed)
    splits = np.where(given == "test", "test", "").astype("<U10")
    pool = np.flatnonzero(given == "train")
    if np.any(given == "validation"):
        held_out = np.flatnonzero(given == "validation")
        if validation is not None:
            held_out = _draw(labels, held_out, validation, "validation", rng)
    else:
        count = round(VALIDATION_SHARE * len(pool)) if validation is None else validation
        held_out = _draw(labels, pool, count, "validation", rng, leave=1)
        pool = np.setdiff1d(pool, held_out)
    splits[held_out] = "validation"
    splits[pool if train is None else _draw(labels, pool, train, "train", rng)] = "train"
    return splits


def stratified_folds(labels: NDArray[Any], folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Divide images into disjoint parts of nearly equal size with the same mix of classes.

    Args:
        labels: class of every image, ``[N]``.
        folds: number of parts, at least 1; one fold is all images.
        seed: the same seed and labels give the same folds.

    Returns:
        The images of each fold: ascending indices into ``labels``. Their union is all images.

    Raises:
        ValueError: for fewer than one fold, or a class with fewer images than folds.
    """
    if folds < 1:
        raise ValueError(f"the number of folds must be at least 1, got {folds}")
    if folds == 1:
        return [np.arange(len(labels), dtype=np.int64)]
    names, sizes = np.unique(labels, return_counts=True)
    small = [f"{name} ({size})" for name, size in zip(names, sizes, strict=True) if size < folds]
    if small or not len(names):
        raise ValueError(
            f"{folds} folds need at least {folds} images of every class; too few of class "
            f"{', '.join(small[:5]) or 'any (no images)'}: use fewer folds or more images"
        )
    from sklearn.model_selection import StratifiedKFold  # a slow import that one fold never needs

    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    parts = splitter.split(np.zeros(len(labels)), labels)
    return [part.astype(np.int64) for _, part in parts]


def resample(
    labels: NDArray[Any], validation: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images anew into some to train on and some to validate on, stratified.

    Args:
        labels: class of every image, ``[N]``.
        validation: how many of them to validate on.
        seed: the same seed and labels give the same division.

    Returns:
        Ascending indices into ``labels``, to train on and to validate on; every class is in both.

    Raises:
        ValueError: if there are too few images, of a class or in all.
    """
    everything = np.arange(len(labels), dtype=np.int64)
    rng = np.random.default_rng(seed)
    held_out = _draw(labels, everything, validation, "validation", rng, leave=1)
    return np.setdiff1d(everything, held_out), held_out


def _draw(
    labels: NDArray[Any],
    candidates: NDArray[np.int64],
    count: int,
    split: Split,
    rng: np.random.Generator,
    *,
    leave: int = 0,
) -> NDArray[np.int64]:
    """Exactly ``count`` of the candidates, of every class one or more; ``leave`` of each remain."""
    names, codes, sizes = np.unique(labels[candidates], return_inverse=True, return_counts=True)
    available = sizes - leave
    if np.any(available < 1):
        smallest = int(np.argmin(sizes))
        raise ValueError(
            f"class {names[smallest]} has {sizes[smallest]} image(s), but every class needs one to "
            f"train on and another one to validate on: add images or remove the class"
        )
    if count < len(names):
        raise ValueError(
            f"{count} {split} images were asked for, but each of the {len(names)} classes needs at "
            f"least one: ask for {len(names)} or more"
        )
    if count > available.sum():
        raise ValueError(
            f"{count} {split} images were asked for, but there are only {available.sum()} to draw "
            f"from{' if every class keeps one for the other split' if leave else ''}: ask for fewer"
        )
    taken = [
        rng.permutation(np.flatnonzero(codes == code))[:share]
        for code, share in enumerate(_shares(available, sizes, count))
    ]
    drawn: NDArray[np.int64] = candidates[np.sort(np.concatenate(taken))]
    return drawn


def _shares(
    available: NDArray[np.int64], sizes: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """How many images of each class: in proportion to ``sizes``, within 1 … ``available``."""
    # scikit-learn's StratifiedShuffleSplit refuses splits with fewer images than classes and may
    # leave a small class out; a class that is never seen in training or validation is no use here.
    quotas = count * sizes / sizes.sum()
    shares: NDArray[np.int64] = np.clip(np.floor(quotas).astype(np.int64), 1, available)
    while shares.sum() < count:
        shares[np.argmax(np.where(shares < available, quotas - shares, -np.inf))] += 1
    while shares.sum() > count:
        shares[np.argmax(np.where(shares > 1, shares - quotas, -np.inf))] -= 1
    return shares


def _check_predefined(labels: NDArray[Any], given: NDArray[np.str_]) -> None:
    needed: list[Split] = ["train", "validation"] if np.any(given == "validation") else ["train"]
    for split in needed:
        missing = np.setdiff1d(labels, labels[given == split])
        if len(missing):
            raise ValueError(
                f"the {split} split has no image of class {', '.join(map(str, missing[:5]))}: "
                f"every class needs at least one there; add images or remove the class"
            )
    if not np.any(given == "test"):
        raise ValueError("the test split has no image: add some, or give no split folders at all")
