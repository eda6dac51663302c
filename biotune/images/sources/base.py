"""What every source of labelled images offers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray


class ImageSource(Protocol):
    """Labelled images that can be read one at a time, in an order that is always the same.

    Attributes:
        name: what ``prepare.source`` calls it.
        classes: class names; their order is the order of a classifier's outputs.
        paths: what identifies each image, relative to the source, ``/``-separated, ``[N]``.
        labels: class of each image, index into ``classes``, int64 ``[N]``.
        splits: train, validation or test for each image, ``[N]``, if the source says so.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> list[str]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def splits(self) -> list[str] | None: ...

    def load(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 RGB ``[H, W, 3]``, 0 to 255; sizes may differ between images.

        Raises:
            UnusableImageError: if this one cannot be used, whatever the others are.
        """
        ...


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Orders names as people do: runs of digits by their value, letters without their case."""
    parts = re.split(r"(\d+)", name.casefold())
    # Every second part is a number, so that a text is never compared with a number.
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def check_names(paths: Iterable[str]) -> None:
    """Refuse names that no UTF-8 file can hold.

    Raises:
        ValueError: naming the first of them.
    """
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the file name {path!r} is not valid UTF-8: rename it") from error
