"""What several networks of one architecture say of the same images, in one go.

Networks that were trained from the same weights have a frozen prefix in common: what it makes of an
image is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from biotune.finetuning.backbones import Backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import FeatureCache
from biotune.finetuning.training import INFERENCE_BATCH, ImageSubset, predict_probabilities

_ALL_FIT: Final = 1 << 62
"""Bytes for features: a job holds those of its own images, a single batch, and no others."""


@dataclass(frozen=True)
class Trained:
    """A fine-tuned network.

    Attributes:
        backbone: in evaluation mode, on the device that is computed on.
        cut: how many of its layers were not trained; see
            :func:`~biotune.finetuning.feature_cache.cut_of`.
    """

    backbone: Backbone
    cut: int


def predict_each(
    networks: Sequence[Trained], subset: ImageSubset, compute: Compute, threads: Executor
) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """Class probabilities of all images by every network.

    Each batch of images is a job of its own, computed by all networks. A network's bits are those
    of its own cut, whatever other networks there are and however many jobs run side by side: up to
    the cut in chunks of :data:`~biotune.finetuning.feature_cache.CHUNK` images, from there in
    batches of :data:`~biotune.finetuning.training.INFERENCE_BATCH`.

    Args:
        networks: at least one.
        subset: the images, at least one.
        compute: device and precision.
        threads: computes the jobs; each of its threads must use one thread of torch's.

    Yields:
        For each batch, in the order of the images, a float32 [batch, classes] of every network.
    """
    prefixes = _prefixes(networks)

    def batch(begin: int) -> tuple[NDArray[np.float32], ...]:
        rows = subset.indices[begin : begin + INFERENCE_BATCH]
        part = ImageSubset(subset.images[rows], subset.labels[rows], np.arange(len(rows)))
        caches = {
            place: FeatureCache(networks[place].backbone, part.images, compute, _ALL_FIT)
            for place in set(prefixes)
        }
        probabilities = {
            place: predict_probabilities(
                networks[place].backbone,
                part,
                compute,
                cache=caches[prefixes[place]],
                cut=networks[place].cut,
            )
            for place in _shallow_first(networks)  # deeper features are made from those
        }
        return tuple(probabilities[place] for place in range(len(networks)))

    yield from threads.map(batch, range(0, len(subset), INFERENCE_BATCH))


def _prefixes(networks: Sequence[Trained]) -> list[int]:
    """For each network the place of the one whose layers compute its features up to its cut."""
    deep_first = _shallow_first(networks)[::-1]
    return [
        next(place for place in deep_first if _holds_prefix(networks[place], network))
        for network in networks
    ]


def _shallow_first(networks: Sequence[Trained]) -> list[int]:
    return sorted(range(len(networks)), key=lambda place: networks[place].cut)


def _holds_prefix(deep: Trained, network: Trained) -> bool:
    """Whether the layers before a network's cut are, bit by bit, frozen ones of the other."""
    first, second = deep.backbone, network.backbone
    if (first.name, first.mean, first.std) != (second.name, second.mean, second.std):
        return False
    pairs = zip(first.layers[: network.cut], second.layers[: network.cut], strict=True)
    return deep.cut >= network.cut and all(_are_equal(*pair) for pair in pairs)


def _are_equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    tensors, others = first.state_dict(), second.state_dict()
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )
