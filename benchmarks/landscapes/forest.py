"""Extremely randomized trees of plans, in arrays that answer for one plan in a tenth of a
millisecond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from biotune.plan import FineTunePlan

Array = NDArray[np.float64]

TREES = 100
LEAF = 8
"""A leaf holds so many rows at least; with :data:`COPIES`, some two plans."""

COPIES, JITTER = 4, 0.1
"""Each plan is learned with so many copies whose log10 rates differ by normal deviates of this
size: no plan's own luck stands as a peak of its own, and a small change of a rate is a small
change."""

_OFFSET = 1.5
"""Added to log10 of a rate, so that a block at 0.1× differs from a frozen one."""


@dataclass(frozen=True)
class Forest:
    """Trees, all in the same arrays.

    Attributes:
        roots: int [trees], the first node of each tree.
        depth: of the deepest tree.
        feature, threshold, left, right: [nodes]; a leaf leads to itself.
        values: [nodes, outputs], the mean of what was learned there.
    """

    roots: NDArray[np.intp]
    depth: int
    feature: NDArray[np.intp]
    threshold: Array
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    values: Array

    @classmethod
    def fit(cls, plans: Sequence[FineTunePlan], targets: Array, weights: Array) -> Forest:
        """Learn ``targets`` [plans, outputs], which are standardised for the choice of splits.

        Args:
            plans: of the same blocks.
            targets: one row a plan.
            weights: [plans], how much each row counts.
        """
        rng = np.random.default_rng(0)
        rates = np.stack([log_rates(plan) for plan in plans])
        jittered = [
            np.clip(rates + rng.normal(0, JITTER * (n > 0), rates.shape), -1, 1)
            for n in range(1 + COPIES)
        ]
        center, scale = targets.mean(axis=0), targets.std(axis=0) + 1e-9
        regressor = ExtraTreesRegressor(
            TREES, min_samples_leaf=LEAF, max_features=0.5, random_state=0, n_jobs=1
        )
        regressor.fit(
            features(np.concatenate(jittered)),
            np.tile((targets - center) / scale, (1 + COPIES, 1)).squeeze(),
            np.tile(weights, 1 + COPIES),
        )
        return cls._compiled(regressor, center, scale)

    @classmethod
    def _compiled(cls, regressor: ExtraTreesRegressor, center: Array, scale: Array) -> Forest:
        trees = [tree.tree_ for tree in regressor.estimators_]
        starts = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
        is_leaf = np.concatenate([tree.children_left < 0 for tree in trees])
        nodes = np.arange(is_leaf.size)

        def moved(name: str) -> NDArray[np.intp]:
            parts = zip(trees, starts, strict=True)
            return np.concatenate([getattr(tree, name) + start for tree, start in parts])

        values = np.concatenate([tree.value[:, :, 0] for tree in trees])
        return cls(
            roots=starts,
            depth=max(tree.max_depth for tree in trees),
            feature=np.where(is_leaf, 0, np.concatenate([tree.feature for tree in trees])),
            threshold=np.concatenate([tree.threshold for tree in trees]),
            left=np.where(is_leaf, nodes, moved("children_left")),
            right=np.where(is_leaf, nodes, moved("children_right")),
            values=values * scale + center,
        )

    def leaves(self, rates: Array, splits: int | None = None) -> NDArray[np.intp]:
        """The node in which each tree ends, int [plans, trees], of :func:`log_rates` [plans, B].

        Args:
            rates: of plans.
            splits: where each tree is after so many splits, instead.
        """
        inputs = features(rates)
        node = np.tile(self.roots, (len(inputs), 1))
        rows = np.arange(len(inputs))[:, None]
        for _ in range(self.depth if splits is None else splits):
            below = inputs[rows, self.feature[node]] <= self.threshold[node]
            node = np.where(below, self.left[node], self.right[node])
        return node

    def predict(self, rates: Array) -> Array:
        """[plans, outputs], of :func:`log_rates` [plans, B]."""
        predicted: Array = self.values[self.leaves(rates)].mean(axis=1)
        return predicted


def log_rates(plan: FineTunePlan) -> Array:
    """log10 of each block's rate, [B]; NaN where it is frozen."""
    return np.array([np.nan if rate is None else np.log10(rate) for rate in plan.values()])


def features(rates: Array) -> Array:
    """What trees split by, [plans, F], of log10 rates [plans, B] that are NaN where frozen.

    Of every block how much it learns, in logarithms and in rates, and of every three neighbours
    the sum and the most: what one block learns can stand for what the next one does.
    """
    frozen = np.isnan(rates)
    learns = np.where(frozen, 0.0, rates + _OFFSET)
    width = min(3, rates.shape[1])
    neighbours = np.lib.stride_tricks.sliding_window_view(learns, width, axis=1)
    rate = np.where(frozen, 0.0, 10 ** np.where(frozen, 0.0, rates))
    return np.concatenate([learns, rate, neighbours.sum(axis=2), neighbours.max(axis=2)], axis=1)
