"""Several networks in one go: the bits of each alone, and a common frozen prefix computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.inference import Trained, predict_each
from biotune.finetuning.training import ImageSubset, predict_probabilities
from tests.threads import one_thread

IMAGES = 70  # a batch of 64, and one of 6


@pytest.fixture(scope="module")
def subset() -> ImageSubset:
    images = np.random.default_rng(0).integers(0, 256, (IMAGES + 5, 32, 32, 3), np.uint8)
    return ImageSubset(images, np.zeros(len(images), np.int64), np.arange(5, IMAGES + 5))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone("efficientnet_lite0", "none", 3)


def trained(backbone: Backbone, first: str, seed: int) -> Trained:
    """A copy whose blocks from ``first`` on have other weights."""
    network, cut = deepcopy(backbone), backbone.blocks[first].first_layer
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in network.blocks.values():
            for name in block.tensors if block.first_layer >= cut else ():
                tensor = network.network.state_dict()[name]
                if tensor.is_floating_point():
                    tensor += 0.01 * torch.rand(tensor.shape, generator=noise)
    return Trained(network, cut)


def predict(networks: list[Trained], subset: ImageSubset, workers: int) -> list[np.ndarray]:
    with (
        one_thread(),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as t,
    ):
        parts = list(predict_each(networks, subset, Compute(), t))
    return [np.concatenate(of_network) for of_network in zip(*parts, strict=True)]


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How many images pass the first convolution and the classifier of any network."""
    seen: Counter[str] = Counter()

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        if isinstance(module, nn.Linear):
            seen["classifier"] += len(inputs[0])
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            seen["stem"] += len(inputs[0])

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def test_each_gets_the_bits_that_it_gets_alone_with_any_number_of_workers(
    backbone: Backbone, subset: ImageSubset
) -> None:
    networks = [
        trained(backbone, "blocks.4", 1),
        trained(backbone, "blocks.2", 2),
        trained(backbone, "stem", 3),
    ]
    together = predict(networks, subset, 1)
    with one_thread():
        alone = [predict_probabilities(n.backbone, subset, cut=n.cut) for n in networks]
    assert len({rows.tobytes() for rows in together}) == 3
    for rows, expected in zip(together, alone, strict=True):
        assert rows.shape == (IMAGES, 3)
        assert np.array_equal(rows, expected)
    for rows, expected in zip(predict(networks, subset, 3), together, strict=True):
        assert np.array_equal(rows, expected)


def test_a_prefix_that_networks_have_in_common_is_computed_once(
    backbone: Backbone, subset: ImageSubset
) -> None:
    chunks = 3 * 32  # of 64 and 6 images, the last one filled up
    networks = [trained(backbone, first, s) for s, first in enumerate(("blocks.2", "blocks.4") * 2)]
    with counted() as seen:
        predict(networks, subset, 2)
    assert seen == {"stem": chunks, "classifier": 4 * IMAGES}


def test_a_prefix_that_is_another_is_computed_for_itself(
    backbone: Backbone, subset: ImageSubset
) -> None:
    other = trained(backbone, "stem", 7).backbone
    networks = [trained(backbone, "blocks.4", 1), trained(other, "blocks.2", 2)]
    with counted() as seen:
        together = predict(networks, subset, 2)
    assert seen == {"stem": 2 * 3 * 32, "classifier": 2 * IMAGES}
    with one_thread():
        alone = [predict_probabilities(n.backbone, subset, cut=n.cut) for n in networks]
    assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True))
