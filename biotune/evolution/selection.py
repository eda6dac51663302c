"""Who has children, and how strongly they mutate: rank-based draws and extinction factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from biotune.plan import Evaluation


def rank_probabilities(size: int) -> NDArray[np.float64]:
    """How likely each rank is drawn: linearly decreasing, shape [size], the best rank first.

    Rank i of M has probability (M − i) / (M(M+1)/2).

    Raises:
        ValueError: if ``size`` is not at least 1.
    """
    if size < 1:
        raise ValueError(f"cannot draw from a pool of {size}, expected at least 1")
    weights = np.arange(size, 0, -1, dtype=np.float64)
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def draw_parents(size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Ranks of two different parents from a mating pool of ``size``, sorted best first.

    Raises:
        ValueError: if ``size`` is not at least 2.
    """
    if size < 2:
        raise ValueError(f"two different parents need a pool of at least 2, got {size}")
    first, second = rng.choice(size, size=2, replace=False, p=rank_probabilities(size))
    return int(first), int(second)


def draw_prototype(size: int, rng: np.random.Generator) -> int:
    """Rank of a prototype from a mating pool of ``size``, sorted best first; may be a parent's.

    Raises:
        ValueError: if ``size`` is not at least 1.
    """
    return int(rng.choice(size, p=rank_probabilities(size)))


def extinction_factors(ranking: Sequence[Evaluation]) -> NDArray[np.float64]:
    """How close each rank is to extinction: 0 for the best, up to 1.

    e_i = (Φ_i + Φ_min·(i/(N−1) − 1)) / Φ_max, clipped to [0, 1]; 0 where Φ_max = 0 or N = 1.
    One very bad run would make all other factors tiny and so stop mutation. Failed runs are
    therefore left out of Φ_min and Φ_max and get the factor 1, and Φ_max is at most twice the
    median of the others. A stopped run counts as what it is estimated at, if it is.

    Args:
        ranking: N evaluations, sorted best first by ``rank_key``.

    Returns:
        shape [N].

    Raises:
        ValueError: if the evaluations are none, or not sorted.
    """
    keys = [evaluation.rank_key for evaluation in ranking]
    if not keys or keys != sorted(keys):
        raise ValueError(f"expected evaluations sorted best first, got {list(ranking)}")
    factors = np.ones(len(ranking))
    scored = np.array([e.has_result for e in ranking])
    if not scored.any():
        return factors
    scores = np.array([evaluation.fitness for evaluation in ranking])[scored]
    # A quotient of scores means something from 0 up only; for other scales the best counts as 0.
    scores -= min(scores.min(), 0.0)
    largest = min(scores.max(), 2 * float(np.median(scores)))
    if largest == 0 or len(ranking) == 1:
        factors[scored] = 0
        return factors
    relative_rank = np.arange(len(ranking))[scored] / (len(ranking) - 1)
    numerators = scores + scores.min() * (relative_rank - 1)
    factors[scored] = np.clip(numerators, 0, largest) / largest
    return factors
