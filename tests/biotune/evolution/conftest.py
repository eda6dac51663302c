"""A random generator that draws what a test tells it to: formulas can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


class ScriptedDraws:
    """Stands in for ``numpy.random.Generator``; its uniform numbers come from a list."""

    def __init__(self, *draws: float) -> None:
        self.left = list(draws)

    def random(self, size: int | tuple[int, ...] = ()) -> np.ndarray:
        count = int(np.prod(size))
        drawn, self.left = self.left[:count], self.left[count:]
        return np.reshape(np.array(drawn), size)

    def uniform(self, low: float, high: float, size: int | tuple[int, ...] = ()) -> np.ndarray:
        return low + (high - low) * self.random(size)

    def choice(self, values: np.ndarray) -> float:
        return values[int(self.random() * len(values))]


@pytest.fixture
def scripted() -> Callable[..., ScriptedDraws]:
    return ScriptedDraws
