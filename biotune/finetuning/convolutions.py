"""Convolutions that keep pace on a CPU: the same sums, taken in the order that is fast there.

oneDNN's gradients of depthwise convolutions have slow cases: in bfloat16 the input's where the
stride is 2, and in both types the weight's where the kernel is 5 × 5 or wider than the map. Of the
252 ms that a training step of an efficientnet_lite0 takes at 64 px (AVX2, fp32, 32 images, one
thread), they are 100. Each has a fast neighbour (measured per shape on an AMD EPYC, torch 2.14;
``benchmarks/precision.py`` times whole training steps):

- in float32 the weight's gradient on a small map is summed tap by tap: each place of the kernel
  sees a rectangle of the map, and what it meets there is multiplied and added up;
- in bfloat16, and in float32 on somewhat larger maps, the weight's gradient of a 5 × 5 kernel is
  put together from those of four overlapping 3 × 3 kernels, its input padded beforehand;
- in bfloat16 the input's gradient at stride 2 is taken in float32;
- on a map smaller than the kernel, only the part of the kernel that meets it is computed with.

A pointwise convolution of few pixels and many channels is one product of matrices; as such it is
faster where the weight is larger than the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

_WINDOW = 3
"""oneDNN has fast weight gradients for kernels of this size, on maps that are no smaller."""

_BY_TAP, _BY_WINDOW = 5, 12
"""Up to so many rows and columns of output a 5 × 5 kernel's weight gradient is faster in float32
tap by tap, or window by window at stride 1. With AVX2, 240 channels, 32 images, in ms, oneDNN :
windows : taps, 4 × 4 4.9 : .7 : .65, 5 × 5 1.3 : .9 : .9, 8 × 8 3.5 : 1.5 : 2.2, 12 × 12
6.8 : 5.4 : 6.8, 16 × 16 11.5 : 14.3 : 17.4; at stride 2 windows do not pay beyond 5 × 5."""


_Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""Zeros above and below a map, left and right of it."""


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution, of kernel 3 × 3 or 5 × 5 and stride 1 or 2, without a bias.

    It takes and gives what the convolution does whose place it takes; its weight is the same
    tensor under the same name. Under autocast it runs in autocast's type.

    Args:
        replaced: the convolution; see :func:`replace_convolutions`.
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
        self.padding = replaced.padding
        self._same = _is_same_padded(replaced)
        self._padding = int(replaced.padding[0])
        self.train(replaced.training)

    def forward(self, input: Tensor) -> Tensor:
        """Float maps [N, C, H, W] → [N, C, H', W']."""
        dtype = _autocast_dtype(input)
        down, across = self._taps(input.shape[2]), self._taps(input.shape[3])
        weight = self.weight[:, :, down.first : down.end, across.first : across.end].to(dtype)
        if weight.shape[2:] == (1, 1) and self.stride == (1, 1):
            return input.to(dtype) * weight.view(1, -1, 1, 1)
        pads = ((down.before, down.after), (across.before, across.after))
        if dtype != torch.float32 and pads != ((down.before,) * 2,) * 2:
            input, pads = pad(input, (*pads[1], *pads[0])), ((0, 0), (0, 0))
        convolved: Tensor = _Convolution.apply(input.to(dtype), weight, self.stride[0], pads)
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


class PointwiseConv2d(nn.Conv2d):
    """A convolution of kernel 1 × 1 and stride 1, without a bias, that may be a matrix product.

    It takes and gives what the convolution does whose place it takes; its weight is the same
    tensor under the same name.

    Args:
        replaced: the convolution; see :func:`replace_convolutions`.
    """

    def __init__(self, replaced: nn.Conv2d) -> None:
        with torch.device("meta"):  # the weight is taken over, so none is initialised
            super().__init__(replaced.in_channels, replaced.out_channels, 1, bias=False)
        self.weight = replaced.weight
        self.train(replaced.training)

    def forward(self, input: Tensor) -> Tensor:
        """Float maps [N, C, H, W] → [N, C', H, W]."""
        pixels = input.shape[0] * input.shape[2] * input.shape[3]
        in_float32 = _autocast_dtype(input) == torch.float32
        if not in_float32 or pixels > self.in_channels + self.out_channels:
            return super().forward(input)
        return linear(input.permute(0, 2, 3, 1), self.weight.flatten(1)).permute(0, 3, 1, 2)


def replace_convolutions(network: nn.Module) -> None:
    """Put one of ours in the place of every convolution that it can stand for.

    Activations no longer work in place where their gradient needs their input: torch copies it
    first, which is one pass over the map more than a result of its own.
    """
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Conv2d) and is_replaceable(module):
                setattr(parent, name, DepthwiseConv2d(module))
            elif type(module) is nn.Conv2d and _is_pointwise(module):
                setattr(parent, name, PointwiseConv2d(module))
            elif isinstance(module, nn.Hardtanh | nn.SiLU | nn.Hardswish):  # and ReLU6
                module.inplace = False


def _is_pointwise(module: nn.Conv2d) -> bool:
    sizes = (module.kernel_size, module.stride, module.groups)
    return (
        sizes == ((1, 1), (1, 1), 1)
        and module.bias is None
        and isinstance(module.weight, nn.Parameter)  # none that is computed from others
        and module.padding in ((0, 0), "valid")
    )


def is_replaceable(module: nn.Conv2d) -> bool:
    """Whether a :class:`DepthwiseConv2d` can stand for this convolution."""
    return (
        (type(module) is nn.Conv2d or _is_same_padded(module))
        and module.groups == module.in_channels == module.out_channels > 1
        and module.kernel_size in ((3, 3), (5, 5))
        and module.stride in ((1, 1), (2, 2))
        and module.dilation == (1, 1)
        and module.bias is None
        and isinstance(module.weight, nn.Parameter)  # none that is computed from others
        and module.padding_mode == "zeros"
        and len(set(module.padding)) == 1
        and not isinstance(module.padding, str)
    )


def _is_same_padded(module: nn.Conv2d) -> bool:
    from timm.layers.conv2d_same import Conv2dSame  # two seconds that most programs never need

    return isinstance(module, Conv2dSame)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: int, pads: _Pads) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.stride, ctx.pads = stride, pads
        weight, padding = _evenly(weight, pads)
        return conv2d(maps, weight, None, stride, padding, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        maps, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        in_float32 = maps.dtype == torch.float32
        input_gradient = _input_gradient if in_float32 else _input_gradient_bf16
        weight_gradient = _weight_gradient if in_float32 else _put_together
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = input_gradient(gradient, maps, weight, ctx.stride, ctx.pads)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(gradient, maps, weight, ctx.stride, ctx.pads)
        return of_maps, of_weight, None, None


def _evenly(weight: Tensor, pads: _Pads) -> tuple[Tensor, list[int]]:
    """Where one more zero comes after a map than before: a kernel that wants as many on both sides.

    It has a row or column of zeros in front. A padded copy of the map, written and read again,
    would cost more than the products with these.
    """
    (above, below), (left, right) = pads
    in_front = (max(0, right - left), max(0, left - right), max(0, below - above))
    wide = (
        pad(weight, (*in_front, max(0, above - below))) if any(a != b for a, b in pads) else weight
    )
    return wide, [max(above, below), max(left, right)]


def _input_gradient(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, pads: _Pads
) -> Tensor:
    weight, padding = _evenly(weight, pads)
    return _backward(gradient, maps, weight, stride, padding, wanted=0)


def _input_gradient_bf16(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, pads: _Pads
) -> Tensor:
    if stride == 1:
        return _input_gradient(gradient, maps, weight, stride, pads)
    # Only the input's shape and layout count here, not its values.
    shaped = torch.empty_like(maps, dtype=torch.float32)
    exact = _input_gradient(gradient.float(), shaped, weight.float(), stride, pads)
    return exact.to(maps.dtype)


def _weight_gradient(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, pads: _Pads
) -> Tensor:
    rows, columns = gradient.shape[2:]
    if max(weight.shape[2:]) <= _WINDOW:
        by_tap, by_window = min(rows, columns) < _WINDOW, False
    else:
        by_tap = max(rows, columns) <= _BY_TAP
        by_window = stride == 1 and max(rows, columns) <= _BY_WINDOW
    if by_tap:
        return _summed_by_tap(gradient, maps, weight, stride, pads)
    if by_window:
        return _put_together(gradient, maps, weight, stride, pads)
    (above, below), (left, right) = pads
    if above != below or left != right:
        maps, above, left = _padded(maps, pads), 0, 0
    return _backward(gradient, maps, weight, stride, [above, left], wanted=1)


def _padded(maps: Tensor, pads: _Pads) -> Tensor:
    """Maps with zeros around; each place is written once, ``pad`` would write all of them twice."""
    (above, below), (left, right) = pads
    images, channels, height, width = maps.shape
    padded = maps.new_empty(images, above + height + below, left + width + right, channels)
    padded[:, :above].zero_()
    padded[:, above + height :].zero_()
    padded[:, :, :left].zero_()
    padded[:, :, left + width :].zero_()
    padded[:, above : above + height, left : left + width] = maps.permute(0, 2, 3, 1)
    return padded.permute(0, 3, 1, 2)


def _summed_by_tap(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, pads: _Pads
) -> Tensor:
    """The weight's gradient as its definition has it: Σ over images, rows and columns."""
    given, seen = gradient.permute(0, 2, 3, 1), maps.permute(0, 2, 3, 1)  # channels last
    (above, _), (left, _) = pads
    across = [
        _met(column - left, stride, given.shape[2], seen.shape[2])
        for column in range(weight.shape[3])
    ]
    sums = []
    for row in range(weight.shape[2]):
        below, under = _met(row - above, stride, given.shape[1], seen.shape[1])
        given_rows, seen_rows = given[:, below], seen[:, under]
        for beside, along in across:
            sums.append((given_rows[:, :, beside] * seen_rows[:, :, along]).sum((0, 1, 2)))
    return torch.stack(sums, dim=1).view_as(weight)


def _met(offset: int, stride: int, outputs: int, inputs: int) -> tuple[slice, slice]:
    """Along one axis, the outputs to which a tap gives a pixel of the map, and those pixels.

    Args:
        offset: of the pixel that the tap sees from the first output; negative in the padding.
        stride: of the convolution.
        outputs: their number.
        inputs: their number.
    """
    first = max(0, -(offset // stride))
    last = min(outputs - 1, (inputs - 1 - offset) // stride)
    count = max(0, last + 1 - first)
    begin = first * stride + offset
    return slice(first, first + count), slice(begin, begin + count * stride, stride)


def _put_together(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, pads: _Pads
) -> Tensor:
    """The weight's gradient from those of windows of the kernel, which overlap in its middle."""
    padded = _padded(maps, pads)
    height, width = (min(size, _WINDOW) for size in weight.shape[2:])
    rows = (gradient.shape[2] - 1) * stride + height
    columns = (gradient.shape[3] - 1) * stride + width
    window = weight.new_empty(weight.shape[0], 1, height, width)
    result = torch.empty_like(weight)
    for top in {0, weight.shape[2] - height}:
        for left in {0, weight.shape[3] - width}:
            seen = padded[:, :, top : top + rows, left : left + columns]
            seen = seen.contiguous(memory_format=torch.channels_last)
            part = _backward(gradient, seen, window, stride, [0, 0], wanted=1)
            result[:, :, top : top + height, left : left + width] = part
    return result


def _backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, stride: int, padding: list[int], *, wanted: int
) -> Tensor:
    """Gradient of the maps (``wanted`` 0) or of the weight (1)."""
    gradients = torch.ops.aten.convolution_backward(
        gradient,
        maps,
        weight,
        None,
        [stride, stride],
        padding,
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
