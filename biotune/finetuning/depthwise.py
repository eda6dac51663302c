"""Depthwise convolutions that keep pace in bfloat16 on a CPU.

oneDNN's gradients of depthwise convolutions have slow cases, 10 to 60 times slower in bfloat16 than
in float32: the input's where the stride is 2, the weight's where the kernel is 5 × 5 or wider than
the map. Each has a fast neighbour that computes the same sums (measured per shape on an AMD EPYC
with AVX512-BF16, torch 2.14; ``benchmarks/precision.py`` times whole training steps):

- the input's gradient at stride 2 is taken in float32;
- the weight's gradient of a 5 × 5 kernel is put together from those of four overlapping 3 × 3
  kernels, and its input is padded beforehand, not by the convolution;
- on a map smaller than the kernel, only the part of the kernel that meets it is computed with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

_WINDOW = 3  # oneDNN has fast weight gradients for kernels of this size


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution, of kernel 3 × 3 or 5 × 5 and stride 1 or 2, without a bias.

    It takes and gives what the convolution does whose place it takes; its weight is the same
    tensor under the same name. Under autocast it runs in autocast's type.

    Args:
        replaced: the convolution; see :func:`replace_depthwise`.
    """

    def __init__(self, replaced: nn.Conv2d) -> None:
        with torch.device("meta"):  # the weight is taken over, so none is initialised
            super().__init__(
                replaced.in_channels,
                replaced.out_channels,
                replaced.kernel_size[0],
                replaced.stride[0],
                groups=replaced.groups,
                bias=False,
            )
        self.weight = replaced.weight
        self._same = _is_same_padded(replaced)
        self._padding = int(replaced.padding[0])
        self.train(replaced.training)

    def forward(self, input: Tensor) -> Tensor:
        """Float maps [N, C, H, W] → [N, C, H', W']."""
        dtype = _autocast_dtype(input)
        down, across = self._taps(input.shape[2]), self._taps(input.shape[3])
        weight = self.weight[:, :, down.first : down.end, across.first : across.end].to(dtype)
        pads = {down.before, down.after, across.before, across.after}
        if len(pads) > 1:
            input = pad(input, (across.before, across.after, down.before, down.after))
            pads = {0}
        if weight.shape[2:] == (1, 1) and self.stride == (1, 1):
            return input.to(dtype) * weight.view(1, -1, 1, 1)
        convolved: Tensor = _Convolution.apply(input.to(dtype), weight, self.stride[0], *pads)
        return convolved

    def _taps(self, size: int) -> _Taps:
        """What an axis of this many pixels needs of the kernel."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        before = after = self._padding
        if self._same:  # as TensorFlow does: an odd zero comes after
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            before, after = total // 2, total - total // 2
        last = (size + before + after - kernel) // stride * stride  # where the last output begins
        first = max(0, before - last)
        end = min(kernel, before + size)
        return _Taps(first, end, before - first, after - (kernel - end))


@dataclass(frozen=True)
class _Taps:
    """The part of a kernel's axis that ever meets a pixel, and the zeros that this part needs.

    On a map smaller than the kernel the rest only ever meets zeros, before and after.
    """

    first: int
    end: int
    before: int
    after: int


def replace_depthwise(network: nn.Module) -> None:
    """Put a :class:`DepthwiseConv2d` in the place of every convolution that it can stand for."""
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Conv2d) and is_replaceable(module):
                setattr(parent, name, DepthwiseConv2d(module))


def is_replaceable(module: nn.Conv2d) -> bool:
    """Whether a :class:`DepthwiseConv2d` can stand for this convolution."""
    return (
        (type(module) is nn.Conv2d or _is_same_padded(module))
        and module.groups == module.in_channels == module.out_channels > 1
        and module.kernel_size in ((3, 3), (5, 5))
        and module.stride in ((1, 1), (2, 2))
        and module.dilation == (1, 1)
        and module.bias is None
        and module.padding_mode == "zeros"
        and len(set(module.padding)) == 1
        and not isinstance(module.padding, str)
    )


def _is_same_padded(module: nn.Conv2d) -> bool:
    from timm.layers.conv2d_same import Conv2dSame  # two seconds that most programs never need

    return isinstance(module, Conv2dSame)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.stride, ctx.padding = stride, padding
        return conv2d(maps, weight, None, stride, padding, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        maps, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = _input_gradient(gradient, maps, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            padded = pad(maps, (ctx.padding,) * 4)
            of_weight = _weight_gradient(gradient, padded, weight, ctx.stride)
        return of_maps, of_weight, None, None


def _input_gradient(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    if stride == 1:
        return _backward(gradient, maps, weight, stride, padding, wanted=0)
    # Only the input's shape and layout count here, not its values.
    shaped = torch.empty_like(maps, dtype=torch.float32)
    exact = _backward(gradient.float(), shaped, weight.float(), stride, padding, wanted=0)
    return exact.to(maps.dtype)


def _weight_gradient(gradient: Tensor, padded: Tensor, weight: Tensor, stride: int) -> Tensor:
    height, width = (min(size, _WINDOW) for size in weight.shape[2:])
    rows = (gradient.shape[2] - 1) * stride + height
    columns = (gradient.shape[3] - 1) * stride + width
    window = weight.new_empty(weight.shape[0], 1, height, width)
    result = torch.empty_like(weight)
    for top in {0, weight.shape[2] - height}:
        for left in {0, weight.shape[3] - width}:
            seen = padded[:, :, top : top + rows, left : left + columns]
            seen = seen.contiguous(memory_format=torch.channels_last)
            part = _backward(gradient, seen, window, stride, 0, wanted=1)
            result[:, :, top : top + height, left : left + width] = part
    return result


def _backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, padding: int, *, wanted: int
) -> Tensor:
    """Gradient of the maps (``wanted`` 0) or of the weight (1)."""
    gradients = torch.ops.aten.convolution_backward(
        gradient,
        maps,
        weight,
        None,
        [stride, stride],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        weight.shape[0],
        [wanted == 0, wanted == 1, False],
    )
    result: Tensor = gradients[wanted]
    return result


def _autocast_dtype(input: Tensor) -> torch.dtype:
    device = input.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
