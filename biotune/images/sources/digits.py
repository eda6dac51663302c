"""Scikit-learn's handwritten digits: the embedded default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DigitsSource:
    """The 1,797 real handwritten digits, 8 × 8 pixels, that scikit-learn carries with it.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998, doi 10.24432/C50P49. Bright digits on black; grey levels 0 to 16
    are scaled to 0 to 255.
    """

    name = "digits"
    splits: list[str] | None = None

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # a slow import that other sources do not need

        digits = load_digits()
        self._grey: NDArray[np.uint8] = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        self.classes = tuple(str(name) for name in digits.target_names)
        self.labels: NDArray[np.int64] = digits.target.astype(np.int64)
        self.paths = [f"digits/{index:04d}" for index in range(len(self.labels))]

    def load(self, index: int) -> NDArray[np.uint8]:
        """One digit, uint8 ``[8, 8, 3]`` with three equal channels."""
        return np.repeat(self._grey[index][:, :, None], 3, axis=2)
