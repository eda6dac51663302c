"""Which of the training and validation images a run trains on, and which it validates on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from biotune.data.splits import resample, stratified_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from biotune.data.prepared import PreparedImages

FOLD_SEED: Final = 0
"""Folds are a fixed partition of the prepared splits, the same for every search on them."""


@dataclass(frozen=True)
class Division:
    """A division of the training and validation images: by default as they were prepared.

    Attributes:
        fold: train and validate on this fold of both splits.
        folds: how many folds there are; 1 means the whole splits.
        resampled: a seed to divide the images of both splits anew into two of the same sizes, so
            that a plan which was chosen by these validation images can be judged by others; None
            to leave them. Only with one fold.

    Raises:
        ValueError: for a fold that is not there, or folds of resampled splits.
    """

    fold: int = 0
    folds: int = 1
    resampled: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fold < self.folds:
            raise ValueError(f"fold must be one of 0 to {self.folds - 1}, got {self.fold}")
        if self.resampled is not None and self.folds > 1:
            raise ValueError(f"resampled splits have no folds, got {self.folds}")

    def indices(self, images: PreparedImages) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the images to train on, and of those to validate on; two arrays of shape [n].

        Raises:
            ValueError: if a class has too few images for so many folds.
        """
        train, validation = (images.indices(split) for split in ("train", "validation"))
        if self.resampled is None:
            return self._fold_of(train, images), self._fold_of(validation, images)
        pool = np.sort(np.concatenate([train, validation]))
        first, second = resample(images.labels[pool], len(validation), self.resampled)
        return pool[first], pool[second]

    def _fold_of(self, indices: NDArray[np.int64], images: PreparedImages) -> NDArray[np.int64]:
        return indices[stratified_folds(images.labels[indices], self.folds, FOLD_SEED)[self.fold]]


AS_PREPARED: Final = Division()
"""Both splits, whole."""
