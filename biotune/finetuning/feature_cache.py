"""Activations of a frozen prefix, computed once.

The blocks before the first trained one are frozen and in evaluation mode: what they make of an
image is the same in every step, epoch, seed and plan. Where they end is the plan's *cut*; features
at a cut are kept, for each image, as long as they fit.

Features are always computed in chunks of :data:`CHUNK` images, the last one filled up, because
another number of images gives other bits; which images share a chunk changes nothing. So a run is
the same bit for bit with any size of the cache, or none.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biotune.data.transforms import normalise
from biotune.finetuning.backbones import Backbone
from biotune.finetuning.compute import Compute
from biotune.plan import FineTunePlan

CHUNK = 32
"""Images per forward pass of a frozen prefix."""


@dataclass
class _Features:
    """The features of all images at one cut, as far as they are computed.

    Attributes:
        values: [images, …], maps as NHWC.
        computed: which of the images have theirs, bool [images].
    """

    values: Tensor
    computed: NDArray[np.bool_]

    @property
    def size(self) -> int:
        return self.values.numel() * self.values.element_size()


class FeatureCache:
    """The inputs and frozen features of one network on one data set.

    Args:
        backbone: with its pretrained weights in all blocks that are ever frozen, on ``compute``'s
            device.
        images: uint8 [N, S, S, 3], typically memory-mapped.
        compute: device and precision.
        limit: bytes that the features may take; 0 keeps nothing. Those that were not used for the
            longest time make room for others.
        cached: which images to keep features of, indices into ``images``; default all.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: NDArray[np.uint8],
        compute: Compute,
        limit: int = 0,
        cached: NDArray[np.int64] | None = None,
    ) -> None:
        self._backbone, self._images, self._compute, self._limit = backbone, images, compute, limit
        cached = np.arange(len(images)) if cached is None else cached
        self._rows = np.full(len(images), -1, dtype=np.int64)
        self._rows[cached] = np.arange(len(cached))
        self._by_cut: OrderedDict[int, _Features] = OrderedDict()
        self._too_large: set[int] = set()

    @property
    def used(self) -> int:
        """Bytes that the features take."""
        return sum(features.size for features in self._by_cut.values())

    def features(self, indices: NDArray[np.int64], cut: int) -> Tensor:
        """What a network's layers before the cut make of some images.

        Args:
            indices: int64 [n], which images.
            cut: number of layers; see :func:`cut_of`. 0 gives the normalised images.

        Returns:
            [n, …] on the device, in the compute type or what the layers made of it; maps are
            channels_last.

        Raises:
            ValueError: if one of the layers is in training mode: its output would not be fixed.
        """
        if any(_varies(layer) for layer in self._backbone.layers[:cut]):
            raise ValueError(f"the layers before cut {cut} must be in evaluation mode")
        kept = self._kept(indices, cut)
        if kept is None:
            return _as_maps(self._computed(indices, cut))
        rows = torch.from_numpy(self._rows[indices]).to(kept.values.device)
        return _as_maps(kept.values.index_select(0, rows))

    def clear(self) -> None:
        """Forget all features."""
        self._by_cut.clear()

    def _kept(self, indices: NDArray[np.int64], cut: int) -> _Features | None:
        """The features at this cut with those of ``indices`` filled in; None if too large."""
        rows = self._rows[indices]
        if self._limit == 0 or cut in self._too_large or (rows < 0).any():
            return None
        if cut not in self._by_cut:
            first = self._computed(indices[:CHUNK], cut)
            if not self._make_room(cut, first):
                self._too_large.add(cut)  # its size was to be known, and is: not again
                return None
            self._keep(indices[:CHUNK], cut, first)
        kept = self._by_cut[cut]
        self._by_cut.move_to_end(cut)
        missing = indices[~kept.computed[rows]]
        for begin in range(0, len(missing), CHUNK):
            chunk = missing[begin : begin + CHUNK]
            self._keep(chunk, cut, self._computed(chunk, cut))
        return kept

    def _keep(self, indices: NDArray[np.int64], cut: int, features: Tensor) -> None:
        rows = self._rows[indices]
        self._by_cut[cut].values[torch.from_numpy(rows).to(features.device)] = features
        self._by_cut[cut].computed[rows] = True

    def _make_room(self, cut: int, example: Tensor) -> bool:
        """Reserve memory for all images' features, at the cost of others; whether it fits."""
        count = int((self._rows >= 0).sum())
        size = count * example[0].numel() * example.element_size()
        if size > self._limit:
            return False
        while self.used + size > self._limit:
            self._by_cut.popitem(last=False)
        values = example.new_empty((count, *example.shape[1:]))
        self._by_cut[cut] = _Features(values, np.zeros(count, dtype=np.bool_))
        return True

    def _computed(self, indices: NDArray[np.int64], cut: int) -> Tensor:
        """Features in chunks, from the nearest cut that has those of all these images."""
        start, source = self._nearest(indices, cut)
        if start == cut:
            return source
        parts = []
        with torch.no_grad(), self._compute.autocast():
            for begin in range(0, len(indices), CHUNK):
                part = source[begin : begin + CHUNK]
                size = len(part)
                if size < CHUNK:
                    part = torch.cat([part, part[:1].expand(CHUNK - size, *part.shape[1:])])
                features = self._backbone.run_layers(start, cut, _as_maps(part))
                parts.append(_as_rows(features)[:size])
        return torch.cat(parts)

    def _nearest(self, indices: NDArray[np.int64], cut: int) -> tuple[int, Tensor]:
        rows = self._rows[indices]
        for start in sorted(self._by_cut, reverse=True):
            kept = self._by_cut[start]
            if start <= cut and (rows >= 0).all() and kept.computed[rows].all():
                return start, kept.values[torch.from_numpy(rows).to(kept.values.device)]
        return 0, _as_rows(network_input(self._images[indices], self._backbone, self._compute))


def cut_of(backbone: Backbone, plan: FineTunePlan) -> int:
    """How many layers of a network come before what a plan trains.

    Pooling and flattening at the start of the first trained block count as before it: they hold
    nothing to train, and what they leave is smaller.
    """
    return min(backbone.blocks[name].first_layer for name in plan.trained_blocks)


def network_input(images: NDArray[np.uint8], backbone: Backbone, compute: Compute) -> Tensor:
    """Normalised images as the network takes them.

    Args:
        images: uint8 [n, S, S, 3].
        backbone: whose mean and standard deviation to use.
        compute: device, and the type of the result.

    Returns:
        [n, 3, S, S], channels_last, on the device.
    """
    # Stored NHWC, so that the permuted view is channels_last as it stands.
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    if compute.device_type == "cuda":
        pixels = pixels.pin_memory().to(compute.device, non_blocking=True)
    return normalise(pixels.float(), backbone.mean, backbone.std).to(compute.dtype)


def _varies(layer: torch.nn.Module) -> bool:
    """Whether a layer is, or has, a module in training mode that has tensors or draws numbers."""
    return any(
        module.training
        and (
            any(True for _ in module.parameters(recurse=False))
            or any(True for _ in module.buffers(recurse=False))
            or isinstance(module, torch.nn.modules.dropout._DropoutNd)
        )
        for module in layer.modules()
    )


def _as_rows(features: Tensor) -> Tensor:
    """Maps as NHWC, which a row of the cache holds in one piece; all else as it is."""
    return features.permute(0, 2, 3, 1).contiguous() if features.ndim == 4 else features


def _as_maps(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows
