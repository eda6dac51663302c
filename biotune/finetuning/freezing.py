"""What a plan means for a network: one place decides what frozen is, and one proof checks it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from biotune.finetuning.backbones import Backbone
from biotune.plan import FineTunePlan


class FreezeProofError(RuntimeError):
    """After training, a frozen block had moved, or a trained one had not."""


def apply_plan(backbone: Backbone, plan: FineTunePlan, base_lr: float) -> list[dict[str, Any]]:
    """Freeze and unfreeze a network's blocks, and return the optimizer's param groups.

    A frozen block gets no gradients and is in no param group, hence no weight decay either; a
    trained block is one group with ``lr = base_lr * lr_multiplier`` (λ_b = η_b · λ⁰).

    Args:
        backbone: changed in place: ``requires_grad`` of its parameters.
        plan: its blocks must be the backbone's, in the same order.
        base_lr: learning rate at multiplier 1, positive.

    Raises:
        ValueError: if the plan's blocks are not the network's, or base_lr is not positive.
    """
    if tuple(plan) != tuple(backbone.blocks):
        raise ValueError(
            f"the plan's blocks {list(plan)} are not those of {backbone.name}: "
            f"{list(backbone.blocks)}"
        )
    if not base_lr > 0:
        raise ValueError(f"base_lr must be positive, got {base_lr}")
    groups = []
    for block, multiplier in plan.items():
        parameters = list(backbone.parameters_of(block))
        for parameter in parameters:
            parameter.requires_grad_(multiplier is not None)
        if multiplier is not None:
            groups.append({"params": parameters, "lr": base_lr * multiplier, "name": block})
    return groups


def set_training_mode(backbone: Backbone, plan: FineTunePlan) -> None:
    """Put trained blocks in training mode and frozen ones in evaluation mode.

    In evaluation mode BatchNorm uses and keeps its pretrained statistics and dropout is off. Call
    it before every training epoch: validation puts the whole network in evaluation mode.
    """
    for name, block in backbone.blocks.items():
        for module in block.modules:
            module.train(plan[name] is not None)


def trained_parameters(backbone: Backbone, plan: FineTunePlan) -> int:
    """How many parameters the plan trains."""
    return sum(p.numel() for block in plan.trained_blocks for p in backbone.parameters_of(block))


def has_zero_gradient(backbone: Backbone, block: str) -> bool:
    """Whether the last backward pass reached a trained block, and every gradient was exactly zero.

    It happens without any fault: where a frozen block behind it has only dead ReLUs for images
    unlike those it was pretrained on. A gradient that is missing is a fault, and gives False.
    """
    gradients = [parameter.grad for parameter in backbone.parameters_of(block)]
    return all(gradient is not None and not gradient.any() for gradient in gradients)


def prove_frozen(
    backbone: Backbone,
    plan: FineTunePlan,
    start: Mapping[str, Tensor],
    without_signal: Collection[str] = (),
) -> None:
    """Check that a training run moved exactly the blocks that it should.

    Frozen means bit-equal to the start, buffers (BatchNorm's running statistics) included; trained
    means that at least one parameter changed.

    Args:
        backbone: after training.
        plan: what it was trained by.
        start: a copy of ``network.state_dict()`` from before the first step.
        without_signal: trained blocks whose gradient was exactly zero at every step, so that they
            could not move; see :func:`has_zero_gradient`.

    Raises:
        FreezeProofError: naming the blocks at fault.
    """
    now = backbone.network.state_dict()
    parameters = {name for name, _ in backbone.network.named_parameters()}
    moved, unmoved = [], []
    for block in backbone.blocks:
        changed = [n for n in backbone.tensor_names(block) if not torch.equal(now[n], start[n])]
        if plan[block] is None and changed:
            moved.append(f"{block} ({changed[0]})")
        could_move = plan[block] is not None and block not in without_signal
        if could_move and not parameters.intersection(changed):
            unmoved.append(block)
    if moved or unmoved:
        raise FreezeProofError(
            f"freeze proof failed for {plan}: frozen blocks that changed: {moved or 'none'}; "
            f"trained blocks that did not: {unmoved or 'none'}. No result of this run is kept."
        )
