"""Features of a frozen prefix: the same bits from the cache, computed anew, or chained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import CHUNK, FeatureCache, cut_of, network_input
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.freezing import set_training_mode
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.partition import Block
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan
from tests.biotune.finetuning import toy

ROOM = 1 << 30
NAMES = ("efficientnet_lite0", "resnet50", "toy")


class Network:
    """A backbone with images, each with a cache of ample room and one without."""

    def __init__(self, name: str, precision: str) -> None:
        compute = Compute("cpu", precision)
        if name == "toy":
            self.backbone, size = toy.backbone(), 7
        else:
            self.backbone, size = build_backbone(name, "none", 3, for_cpu=True), 32
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (100, size, size, 3), dtype=np.uint8)
        self.kept = FeatureCache(self.backbone, self.images, compute, ROOM)
        self.anew = FeatureCache(self.backbone, self.images, compute, 0)


NETWORKS: dict[tuple[str, str], Network] = {}


def network(name: str, precision: str) -> Network:
    """Built once; the caches fill as the examples go on, as they do in a search."""
    if (name, precision) not in NETWORKS:
        NETWORKS[name, precision] = Network(name, precision)
    return NETWORKS[name, precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_cached_features_are_bit_for_bit_those_computed_anew(name: str, precision: str) -> None:
    net = network(name, precision)

    @settings(max_examples=12)
    @given(
        cut=st.integers(0, len(net.backbone.layers) - 1),
        indices=st.lists(st.integers(0, 99), min_size=1, max_size=70, unique=True),
    )
    def check(cut: int, indices: list[int]) -> None:
        chosen = np.array(indices)
        kept, anew = net.kept.features(chosen, cut), net.anew.features(chosen, cut)
        assert torch.equal(kept, anew)
        assert kept.dtype == anew.dtype
        assert kept.stride() == anew.stride()

    check()


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        ("fp32", "efficientnet_lite0"),
        ("fp32", "toy"),
        ("bf16", "toy"),
        pytest.param("fp32", "resnet50", marks=pytest.mark.slow),
        # Minutes where bf16 is emulated, and the property is the same.
        pytest.param("bf16", "efficientnet_lite0", marks=pytest.mark.slow),
        pytest.param("bf16", "resnet50", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_bit_for_bit_with_any_cache(
    name: str, precision: str, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random plans one after another, on a cache of ample room, a tight one, and none."""

    def trainer(limit: int) -> Trainer:
        if name == "toy":
            monkeypatch.setattr("biotune.finetuning.fitness.build_backbone", _wide_toy)
        return Trainer(digits, name, "none", Compute("cpu", precision), limit)

    ample, tight, none = trainer(ROOM), trainer(2_000_000), trainer(0)
    blocks = list(ample.backbone.blocks)
    rng = np.random.default_rng(7)
    for seed in range(2 if name == "resnet50" else 4):
        mask = rng.random(len(blocks)) < 0.5
        mask[: rng.integers(0, len(blocks))] = False
        mask[-1] |= not mask.any()
        plan = FineTunePlan(
            {b: 2.0 if trained else None for b, trained in zip(blocks, mask, strict=True)}
        )
        task = TrainingTask(
            plan, seed, TrainingSettings(1 if name == "resnet50" else 2, 2, 12, 0.001)
        )
        results = [trainer.train(task, keep_best=True) for trainer in (ample, tight, none, ample)]
        assert len({_bits(result.curve) for result in results}) == 1
        first = results[0].best_state
        for result in results[1:]:
            assert toy.equal(first, result.best_state)
    assert none.cache.used == 0
    assert tight.cache.used <= 2_000_000
    assert ample.cache.used > 0


def _wide_toy(name: str, weights: str, classes: int, *, for_cpu: bool) -> Backbone:
    """The toy network with pooling, so that it takes images of any size, and ten classes."""
    backbone = toy.backbone()
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
    network = nn.Sequential(*backbone.network[:6], *pooled)
    head = Block(pooled, ("8.weight", "8.bias"), first_layer=8)
    return replace(
        backbone,
        network=network,
        blocks={**backbone.blocks, "head": head},
        layers=tuple(network),
        new=frozenset(head.tensors),
    )


def _bits(curve: LearningCurve) -> LearningCurve:
    return replace(curve, seconds=0.0)


def test_which_images_share_a_chunk_changes_nothing() -> None:
    net = network("efficientnet_lite0", "bf16")
    layers = len(net.backbone.layers) - 1
    together = net.anew.features(np.arange(CHUNK), layers)
    alone = [net.anew.features(np.array([i]), layers) for i in range(CHUNK)]
    assert torch.equal(together, torch.cat(alone))


# --- where the prefix ends


def test_the_cut_comes_before_the_first_trained_layer_and_after_pooling() -> None:
    backbone = build_backbone("resnet50", "none", 3)
    blocks = list(backbone.blocks)

    def cut(*trained: str) -> int:
        return cut_of(backbone, FineTunePlan({b: 1.0 if b in trained else None for b in blocks}))

    assert cut("conv1") == cut("conv1", "fc") == 0
    assert backbone.layers[cut("layer3", "fc")] is backbone.network.layer3
    assert backbone.layers[cut("fc")] is backbone.network.fc  # average pooling is before the cut
    pooled = FeatureCache(backbone, np.zeros((1, 32, 32, 3), dtype=np.uint8), Compute())
    assert pooled.features(np.array([0]), cut("fc")).shape == (1, 2048)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_heads_dropout_is_never_part_of_its_prefix(name: str) -> None:
    backbone = build_backbone(name, "none", 3)
    plan = FineTunePlan({b: 1.0 if b == "fc" else None for b in backbone.blocks})
    cut = cut_of(backbone, plan)

    def has(kind: type[nn.Module], layers: tuple[nn.Module, ...]) -> bool:
        return any(isinstance(module, kind) for layer in layers for module in layer.modules())

    assert has(nn.Dropout, backbone.layers[cut:])
    assert not has(nn.AdaptiveAvgPool2d, backbone.layers[cut:])
    set_training_mode(backbone, plan)
    assert backbone.network.dropout.training


# --- what is kept


def test_the_input_is_normalised_once_and_then_comes_from_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Network("toy", "bf16")
    chosen = np.array([5, 2, 9])
    first = net.kept.features(chosen, 0)
    expected = network_input(net.images[chosen], net.backbone, Compute("cpu", "bf16"))
    assert torch.equal(first, expected)
    monkeypatch.setattr("biotune.finetuning.feature_cache.network_input", pytest.fail)
    assert torch.equal(net.kept.features(chosen, 0), expected)


def _counted(ran: list[int]) -> Callable[[Backbone, int, int, torch.Tensor], torch.Tensor]:
    """``run_layers``, which notes from which layer it was run."""
    run_layers = Backbone.run_layers

    def note(self: Backbone, begin: int, end: int, features: torch.Tensor) -> torch.Tensor:
        ran.append(begin)
        return run_layers(self, begin, end, features)

    return note


def test_a_deeper_cut_starts_from_the_nearest_that_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Network("toy", "fp32")
    ran: list[int] = []
    monkeypatch.setattr(Backbone, "run_layers", _counted(ran))
    net.kept.features(np.arange(40), 3)
    assert set(ran) == {0}
    ran.clear()
    net.kept.features(np.arange(40), 6)
    assert set(ran) == {3}
    ran.clear()
    net.kept.features(np.arange(20, 40), 6)
    assert not ran


def test_what_was_unused_for_longest_makes_room_and_what_never_fits_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = toy.backbone()
    images = np.zeros((100, 7, 7, 3), dtype=np.uint8)
    size = {cut: 100 * 4 * n for cut, n in {0: 3 * 49, 3: 4 * 9, 6: 6}.items()}
    cache = FeatureCache(backbone, images, Compute(), size[0] + size[3])
    everything = np.arange(100)
    cache.features(everything, 0)
    cache.features(everything, 3)
    assert cache.used == size[0] + size[3]
    cache.features(everything, 0)  # used again: cut 3 is the older one now
    cache.features(everything, 6)
    assert cache.used == size[0] + size[6]
    small = FeatureCache(backbone, images, Compute(), size[3])
    small.features(everything, 0)
    assert small.used == 0
    ran: list[int] = []
    monkeypatch.setattr(Backbone, "run_layers", _counted(ran))
    tight = FeatureCache(backbone, images, Compute(), 1)
    for _ in range(10):
        tight.features(np.arange(CHUNK), 3)
    assert len(ran) == 11, "its size was found out once, and then each batch is computed once"
    cache.clear()
    assert cache.used == 0


def test_only_the_named_images_are_kept() -> None:
    backbone = toy.backbone()
    images = np.zeros((100, 7, 7, 3), dtype=np.uint8)
    cache = FeatureCache(backbone, images, Compute(), ROOM, cached=np.array([3, 50]))
    cache.features(np.array([50]), 0)
    assert cache.used == 2 * 3 * 49 * 4
    assert cache.features(np.array([50, 99]), 0).shape == (2, 3, 7, 7)  # 99 is computed anew


def test_a_prefix_in_training_mode_is_refused() -> None:
    backbone = toy.backbone()
    backbone.network.train()
    cache = FeatureCache(backbone, np.zeros((1, 7, 7, 3), dtype=np.uint8), Compute(), ROOM)
    cache.features(np.array([0]), 0)
    with pytest.raises(ValueError, match="layers before cut 3 must be in evaluation mode"):
        cache.features(np.array([0]), 3)
