"""BatchNorm of our own: what torch computes, in training and frozen."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from biotune.finetuning.batchnorm import FastBatchNorm2d, replace_batchnorms

CHANNELS = 6
LAYERS = {
    "torch's": lambda: nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.01),
    "with ReLU6": lambda: BatchNormAct2d(CHANNELS, act_layer=nn.ReLU6),
    "with ReLU": lambda: BatchNormAct2d(CHANNELS, act_layer=nn.ReLU),
    "with SiLU": lambda: BatchNormAct2d(CHANNELS, act_layer=nn.SiLU),
    "without activation": lambda: BatchNormAct2d(CHANNELS, apply_act=False),
}


def pair(kind: str) -> tuple[nn.Module, nn.Module]:
    """A layer that has seen images, and one of ours in the place of its copy."""
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 3)
        layer.bias.uniform_(-1, 4)  # so that ReLU6 is met at both of its ends
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    network = nn.Sequential(copy.deepcopy(layer))
    replace_batchnorms(network)
    assert isinstance(network[0], FastBatchNorm2d)
    return layer, network[0]


def results(layer: nn.Module, maps: torch.Tensor) -> list[torch.Tensor]:
    """Output, the gradients of input, weight and bias, and the running statistics."""
    maps = maps.clone().requires_grad_()
    before = maps.detach().clone()
    output = layer(maps)
    output.backward(torch.arange(output.numel(), dtype=torch.float32).view(output.shape) % 7 - 3)
    assert torch.equal(maps, before)
    return [output.detach(), maps.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]


def maps() -> torch.Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(4, CHANNELS, 5, 3).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", LAYERS)
def test_in_training_it_is_torchs_to_the_bit_with_all_gradients_and_statistics(kind: str) -> None:
    plain, ours = pair(kind)
    for _ in range(2):
        pairs = zip(results(ours, maps()), results(plain, maps()), strict=True)
        assert all(torch.equal(got, expected) for got, expected in pairs)


@pytest.mark.parametrize("kind", LAYERS)
def test_frozen_it_scales_and_shifts_each_channel_and_hands_the_gradient_on(kind: str) -> None:
    plain, ours = pair(kind)
    for layer in (plain, ours):
        layer.eval().requires_grad_(False)
    statistics = [buffer.clone() for buffer in ours.buffers()]
    actual = [r for r in results(ours, maps()) if r is not None]
    expected = [r for r in results(plain, maps()) if r is not None]
    for got, wanted in zip(actual, expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(*both) for both in zip(statistics, ours.buffers(), strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_every_tensor_is_the_same_under_the_same_name(kind: str) -> None:
    layer = LAYERS[kind]()
    network = nn.Sequential(layer)
    before = network.state_dict(keep_vars=True)
    replace_batchnorms(network)
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    assert network[0].training == layer.training


def test_in_bf16_it_is_torchs_also_of_channels_far_from_zero() -> None:
    plain, ours = pair("with ReLU6")
    half = maps().bfloat16()
    for training in (True, False):
        for layer in (plain, ours):
            layer.train(training)
            layer.running_mean.fill_(100.0)
        normalised = ours(half + 100)
        assert torch.equal(normalised, plain(half + 100))
        assert normalised.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["torch's", "with ReLU6"])
def test_of_a_single_value_a_channel_there_are_no_statistics(kind: str) -> None:
    _, ours = pair(kind)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(torch.ones(1, CHANNELS, 1, 1))
    assert torch.isfinite(ours.running_var).all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.SyncBatchNorm(3),
        nn.GroupNorm(3, 3),
    ],
    ids=str,
)
def test_a_layer_that_it_cannot_stand_for_stays(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    replace_batchnorms(network)
    assert network[0] is layer
