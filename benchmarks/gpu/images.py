"""All images on the device as uint8, against each batch copied there: input and whole step."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu.setting import Findings, Network, Row, Setting, in_turns, say
from benchmarks.gpu.steps import TrainingStep
from biotune.data import PreparedImages
from biotune.data.transforms import normalise
from biotune.finetuning.backbones import Backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import network_input

COPIED, RESIDENT = "copied per batch", "on the device as uint8"


def run(setting: Setting) -> Findings:
    """Time both ways, and check that they give the same bits."""
    findings = Findings()
    for network in setting.sizes.networks:
        with findings.part(network.name):
            say(str(network))
            findings.rows += _compare(setting, network)
    findings.notes.append(
        "Copied is what training does today: rows of a memory-mapped file, gathered, pinned and "
        "copied. Both are normalised on the device, and are the same to the bit. A step is in "
        f"{setting.precisions[-1]}, all blocks trained."
    )
    return findings


class Batches:
    """Batches of random images from 0 to 255, the next at each call, in either way."""

    def __init__(
        self, setting: Setting, network: Network, backbone: Backbone, compute: Compute
    ) -> None:
        self.images = PreparedImages.open(setting.prepared(network.image_size)).images
        self.resident_images = torch.from_numpy(np.array(self.images)).to(setting.device)
        self.backbone, self.compute = backbone, compute
        self.size = network.batch_size
        self._random = np.random.default_rng(0)

    def draw(self) -> NDArray[np.int64]:
        return self._random.choice(len(self.images), self.size, replace=False)

    def copied(self, indices: NDArray[np.int64] | None = None) -> Tensor:
        chosen = self.draw() if indices is None else indices
        return network_input(self.images[chosen], self.backbone, self.compute)

    def resident(self, indices: NDArray[np.int64] | None = None) -> Tensor:
        rows = torch.from_numpy(self.draw() if indices is None else indices)
        pixels = self.resident_images.index_select(0, rows.to(self.compute.device))
        maps = pixels.permute(0, 3, 1, 2).float()
        return normalise(maps, self.backbone.mean, self.backbone.std).to(self.compute.dtype)


def _compare(setting: Setting, network: Network) -> list[Row]:
    compute = setting.compute(setting.precisions[-1])
    steps = {way: TrainingStep(network, compute) for way in (COPIED, RESIDENT)}
    batches = Batches(setting, network, steps[COPIED].backbone, compute)
    indices = batches.draw()
    if not torch.equal(batches.copied(indices), batches.resident(indices)):
        raise ValueError("a batch that is copied and one on the device are not the same")
    variants: dict[str, dict[str, Callable[[], object]]] = {
        "input alone": {COPIED: batches.copied, RESIDENT: batches.resident},
        "whole step": dict(steps),
    }
    steps[COPIED].images, steps[RESIDENT].images = batches.copied, batches.resident
    rows: list[Row] = []
    for what, ways in variants.items():
        measured = in_turns(ways, setting.device, setting.sizes.turns, setting.sizes.steps)
        pairs = zip(measured[COPIED], measured[RESIDENT], strict=True)
        rows.append(
            {
                "network": str(network),
                "what": what,
                f"{COPIED}, ms": statistics.median(measured[COPIED]),
                f"{RESIDENT}, ms": statistics.median(measured[RESIDENT]),
                "× faster": statistics.median(before / after for before, after in pairs),
                "images, MiB": round(batches.images.nbytes / 2**20),
            }
        )
    return rows
