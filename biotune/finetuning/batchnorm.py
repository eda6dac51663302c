"""BatchNorm with fewer passes over its maps, for training on a CPU.

A map of 32 images is larger than a core's cache, so that what BatchNorm costs is how often maps are
read and written. The same numbers, with fewer passes than torch takes:

- in float32 and evaluation mode, which is that of frozen blocks, it is a scale and a shift of each
  channel, and its gradient a scale; torch's own backward pass over channels-last maps takes three
  times as long (in bfloat16 a rounded shift would move a channel whose mean is far from 0);
- in training mode, a ReLU6 that its library has joined to it works in place, and the gradient of
  both is taken from the result.

Weights, buffers and their names stay what they are; ``benchmarks/precision.py`` times whole steps.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class FastBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm of maps, with the dropout and activation that timm joins to it.

    It takes and gives what the layer does whose place it takes; its tensors are the same under the
    same names.

    Args:
        replaced: the layer; see :func:`replace_batchnorms`.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, replaced: nn.BatchNorm2d) -> None:
        super().__init__(replaced.num_features, replaced.eps, replaced.momentum, device="meta")
        for name in _TENSORS:
            setattr(self, name, getattr(replaced, name))
        joined = [module for module in replaced.children() if type(module) is not nn.Identity]
        self.joined = nn.Sequential(*joined)
        self._bounds: tuple[float, float] | None = None
        if len(joined) == 1 and isinstance(joined[0], nn.Hardtanh):  # ReLU6 is one
            self._bounds = joined[0].min_val, joined[0].max_val
        self.train(replaced.training)

    def forward(self, input: Tensor) -> Tensor:
        """Float maps [N, C, H, W] → [N, C, H, W]."""
        in_float32 = input.dtype == torch.float32
        values = input.numel() // self.num_features  # of one there is no variance: torch's error
        if self.training and self._bounds is not None and in_float32 and values > 1:
            self.num_batches_tracked += 1
            bounded: Tensor = _BoundedBatchNorm.apply(
                input,
                self.weight,
                self.bias,
                self.running_mean,
                self.running_var,
                self.momentum,
                self.eps,
                *self._bounds,
            )
            return bounded
        if self.training or not in_float32:
            normalised = super().forward(input)
        else:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = torch.addcmul(self.bias, self.running_mean, scale, value=-1)
            normalised = torch.addcmul(shift.view(-1, 1, 1), input, scale.view(-1, 1, 1))
        joined: Tensor = self.joined(normalised)
        return joined


def replace_batchnorms(network: nn.Module) -> None:
    """Put a :class:`FastBatchNorm2d` in the place of every BatchNorm that it can stand for."""
    kinds = _kinds()
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if (
                isinstance(module, nn.BatchNorm2d)
                and type(module) in kinds
                and module.momentum is not None
                and all(getattr(module, tensor) is not None for tensor in _TENSORS)
            ):
                setattr(parent, name, FastBatchNorm2d(module))


def _kinds() -> set[type[nn.Module]]:
    """torch's BatchNorm, and timm's if it is loaded: loading timm takes half a second."""
    timms = sys.modules.get("timm.layers.norm_act")
    return {nn.BatchNorm2d} if timms is None else {nn.BatchNorm2d, timms.BatchNormAct2d}


class _BoundedBatchNorm(torch.autograd.Function):
    """BatchNorm by the batch's own statistics, then ``clamp(low, high)`` in place."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        low: float,
        high: float,
    ) -> Tensor:
        bounded, mean, inverse_sd = torch.native_batch_norm(
            maps, weight, bias, running_mean, running_var, True, momentum, eps
        )
        bounded.clamp_(low, high)
        ctx.save_for_backward(maps, weight, mean, inverse_sd, bounded)
        ctx.eps, ctx.low, ctx.high = eps, low, high
        return bounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, inverse_sd, bounded = ctx.saved_tensors
        # Zero at and beyond the bounds, which the result shows as well as what was bounded.
        gradient = torch.ops.aten.hardtanh_backward(gradients[0], bounded, ctx.low, ctx.high)
        of_maps, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient,
            maps,
            weight,
            None,
            None,
            mean,
            inverse_sd,
            True,
            ctx.eps,
            list(ctx.needs_input_grad[:3]),
        )
        return of_maps, of_weight, of_bias, *(None,) * 6
