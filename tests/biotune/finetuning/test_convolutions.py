"""Convolutions of our own: the same sums, wherever they stand."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from biotune.finetuning.backbones import build_backbone
from biotune.finetuning.convolutions import (
    DepthwiseConv2d,
    PointwiseConv2d,
    replace_convolutions,
)

CHANNELS = 8


def gradients(convolution: nn.Module, maps: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of input and weight for one fixed gradient of the output."""
    maps = maps.clone().requires_grad_()
    convolution.zero_grad()
    output = convolution(maps)
    weights = torch.arange(output.numel(), dtype=torch.float32).view(output.shape) % 7 - 3
    (output.float() * weights).sum().backward()
    return [output.detach().float(), maps.grad, convolution.weight.grad]


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "size", [(1, 1), (2, 2), (2, 9), (4, 4), (7, 7), (8, 5), (12, 12), (16, 16), (26, 26)]
)
def test_output_and_gradients_are_those_of_the_convolution_that_it_replaces(
    size: tuple[int, int], stride: int, kernel: int, same: bool
) -> None:
    torch.manual_seed(0)
    kind = Conv2dSame if same else nn.Conv2d
    padding = 0 if same else kernel // 2
    original = kind(
        CHANNELS, CHANNELS, kernel, stride, padding=padding, groups=CHANNELS, bias=False
    )
    ours = DepthwiseConv2d(copy.deepcopy(original))
    maps = torch.randn(3, CHANNELS, *size).to(memory_format=torch.channels_last)
    for got, expected in zip(gradients(ours, maps), gradients(original, maps), strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        half = gradients(ours, maps)
    for got, expected in zip(half, gradients(original, maps), strict=True):
        assert (got - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("size", [(2, 2), (9, 5)], ids=["as a product", "as torch does it"])
def test_a_pointwise_convolution_is_the_one_that_it_replaces(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    original = nn.Conv2d(CHANNELS, 40, 1, bias=False).to(memory_format=torch.channels_last)
    ours = PointwiseConv2d(copy.deepcopy(original))
    maps = torch.randn(3, CHANNELS, *size).to(memory_format=torch.channels_last)
    for got, expected in zip(gradients(ours, maps), gradients(original, maps), strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-3)
    assert ours(maps).is_contiguous(memory_format=torch.channels_last)


def test_the_networks_convolutions_are_replaced_and_every_tensor_keeps_name_and_value() -> None:
    plain = build_backbone("efficientnet_lite0", "imagenet", 10)
    fast = build_backbone("efficientnet_lite0", "imagenet", 10, for_cpu=True)
    replaced = [m for m in fast.network.modules() if isinstance(m, DepthwiseConv2d)]
    depthwise = [m for m in plain.network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(replaced) == len(depthwise) == 16
    pointwise = [m for m in fast.network.modules() if isinstance(m, PointwiseConv2d)]
    assert len(pointwise) == sum(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in plain.network.modules()
    )
    before, after = plain.network.state_dict(), fast.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.allclose(plain.network(images), fast.network(images), atol=1e-4)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 8, 7, padding=3, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        nn.Conv2d(8, 8, (3, 5), padding=1, groups=8, bias=False),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 1, stride=2, bias=False),
        nn.Conv2d(8, 8, 1, padding=1, bias=False),
        nn.Conv2d(8, 8, 1, groups=2, bias=False),
        weight_norm(nn.Conv2d(8, 8, 1, bias=False)),
        weight_norm(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)),
    ],
    ids=str,
)
def test_a_convolution_that_it_cannot_stand_for_stays(convolution: nn.Module) -> None:
    network = nn.Sequential(convolution)
    replace_convolutions(network)
    assert network[0] is convolution


def test_activations_whose_gradient_needs_their_input_no_longer_overwrite_it() -> None:
    network = nn.Sequential(
        nn.ReLU6(inplace=True), nn.SiLU(inplace=True), nn.Hardswish(inplace=True), nn.ReLU(True)
    )
    replace_convolutions(network)
    assert [module.inplace for module in network] == [False, False, False, True]
