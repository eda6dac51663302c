"""What frozen means, that multipliers are learning rates, and a proof that catches each breach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import network_input
from biotune.finetuning.freezing import (
    FreezeProofError,
    apply_plan,
    has_zero_gradient,
    prove_frozen,
    set_training_mode,
    trained_parameters,
)
from biotune.plan import FineTunePlan
from tests.biotune.finetuning import toy


@pytest.fixture
def backbone() -> Backbone:
    return toy.backbone()


def test_each_trained_block_is_one_group_at_its_own_rate(backbone):
    groups = apply_plan(backbone, toy.plan(stem=0.1, head=10.0), base_lr=0.02)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("stem", pytest.approx(0.002)),
        ("head", pytest.approx(0.2)),
    ]
    for group in groups:
        expected = [id(parameter) for parameter in backbone.parameters_of(group["name"])]
        assert [id(parameter) for parameter in group["params"]] == expected


def test_frozen_parameters_are_in_no_group_and_want_no_gradient(backbone):
    groups = apply_plan(backbone, toy.plan(middle=3.0), base_lr=0.02)
    wanted = {id(parameter) for parameter in backbone.parameters_of("middle")}
    assert {id(parameter) for group in groups for parameter in group["params"]} == wanted
    for parameter in backbone.network.parameters():
        assert parameter.requires_grad == (id(parameter) in wanted)


def test_a_later_plan_unfreezes_what_an_earlier_one_froze(backbone):
    apply_plan(backbone, toy.plan(head=1.0), base_lr=0.1)
    apply_plan(backbone, toy.plan(stem=1.0), base_lr=0.1)
    assert all(parameter.requires_grad for parameter in backbone.parameters_of("stem"))
    assert not any(parameter.requires_grad for parameter in backbone.parameters_of("head"))


def test_every_group_of_the_real_network_gets_its_rate():
    backbone = build_backbone("efficientnet_lite0", "none", 10)
    rates = dict(zip(backbone.blocks, [0.1, 0.2, None, 0.5, 1.0, None, 3.0, 7.0, 10.0, 2.0]))  # noqa: B905
    groups = apply_plan(backbone, FineTunePlan(rates), base_lr=0.001)
    got = {group["name"]: group["lr"] for group in groups}
    assert got == pytest.approx({b: 0.001 * m for b, m in rates.items() if m is not None})
    grouped = sum(p.numel() for group in groups for p in group["params"])
    assert grouped == trained_parameters(backbone, FineTunePlan(rates))
    frozen = sum(p.numel() for b in ("blocks.1", "blocks.4") for p in backbone.parameters_of(b))
    assert grouped + frozen == sum(p.numel() for p in backbone.network.parameters())


@pytest.mark.parametrize(
    "blocks", [("stem", "head"), ("stem", "head", "middle"), ("stem", "middle", "neck", "head")]
)
def test_a_plan_of_other_blocks_is_refused(backbone, blocks):
    with pytest.raises(ValueError, match=r"\['stem'.* are not those of toy: \['stem', 'middle'"):
        apply_plan(backbone, FineTunePlan(dict.fromkeys(blocks, 1.0)), base_lr=0.1)


@pytest.mark.parametrize("base_lr", [0.0, -0.1, float("nan")])
def test_a_base_rate_that_is_not_positive_is_refused(backbone, base_lr):
    with pytest.raises(ValueError, match="base_lr must be positive, got"):
        apply_plan(backbone, toy.plan(head=1.0), base_lr)


def test_frozen_blocks_are_in_evaluation_mode_and_trained_ones_in_training_mode(backbone):
    # In `middle` there is dropout, too; a module by itself must not be forgotten.
    for plan in (toy.plan(stem=1.0, head=1.0), toy.plan(middle=1.0)):
        set_training_mode(backbone, plan)
        for block, part in backbone.blocks.items():
            for module in part.modules:
                assert module.training == (block in plan.trained_blocks), (block, module)


def test_batchnorm_and_dropout_deep_inside_real_blocks_follow_the_plan():
    backbone = build_backbone("resnet50", "none", 10)
    plan = FineTunePlan({b: 1.0 if b in ("layer2", "fc") else None for b in backbone.blocks})
    set_training_mode(backbone, plan)
    for name, module in backbone.network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == name.startswith("layer2"), name


def test_a_frozen_block_computes_the_same_with_and_without_training_mode_around_it(backbone):
    images = network_input(toy.subset().images, backbone, Compute())
    before = toy.copy_of(backbone)
    alone = backbone.network[:6](images)
    set_training_mode(backbone, toy.plan(head=1.0))
    assert torch.equal(backbone.network[:6](images), alone)
    assert toy.equal(backbone.network.state_dict(), before)


def test_trained_parameters_are_counted_by_block(backbone):
    assert trained_parameters(backbone, toy.plan(head=1.0)) == 6 * 3 + 3
    assert trained_parameters(backbone, toy.plan(stem=0.1)) == 4 * 3 * 9 + 4 + 8


def one_step(backbone: Backbone, plan: FineTunePlan) -> dict[str, torch.Tensor]:
    """Train a single step by hand; the tensors from before it."""
    start = toy.copy_of(backbone)
    optimizer = torch.optim.Adam(apply_plan(backbone, plan, 0.01))
    set_training_mode(backbone, plan)
    images = toy.subset()
    logits = backbone.forward_from(0, network_input(images.images, backbone, Compute()))
    cross_entropy(logits, images.targets(images.indices, "cpu")).backward()
    optimizer.step()
    return start


def test_the_proof_accepts_an_honest_run(backbone):
    plan = toy.plan(middle=1.0)
    prove_frozen(backbone, plan, one_step(backbone, plan))


def frozen_weight(backbone: Backbone) -> None:
    with torch.no_grad():
        backbone.network[0].weight[0, 0, 0, 0] += 1e-6


def frozen_mean(backbone: Backbone) -> None:
    backbone.network[1].running_mean[2] += 1e-6


def frozen_counter(backbone: Backbone) -> None:
    backbone.network[1].num_batches_tracked += 1


@pytest.mark.parametrize(
    ("breach", "tensor"),
    [
        (frozen_weight, r"0\.weight"),
        (frozen_mean, r"1\.running_mean"),
        (frozen_counter, r"1\.num_batches_tracked"),
    ],
)
def test_the_proof_names_a_frozen_block_that_changed(
    backbone, breach: Callable[[Backbone], None], tensor
):
    plan = toy.plan(middle=1.0)
    start = one_step(backbone, plan)
    breach(backbone)
    expected = rf"frozen blocks that changed: \['stem \({tensor}\)'\]; .* did not: none\. No result"
    with pytest.raises(FreezeProofError, match=expected):
        prove_frozen(backbone, plan, start)


def test_the_proof_catches_a_frozen_batchnorm_left_in_training_mode(backbone):
    plan = toy.plan(head=1.0)
    start = toy.copy_of(backbone)
    optimizer = torch.optim.Adam(apply_plan(backbone, plan, 0.01))
    backbone.network.train()
    images = toy.subset()
    logits = backbone.forward_from(0, network_input(images.images, backbone, Compute()))
    cross_entropy(logits, images.targets(images.indices, "cpu")).backward()
    optimizer.step()
    with pytest.raises(FreezeProofError, match=r"stem \(1\.running_mean\)', 'middle \(4\.runn"):
        prove_frozen(backbone, plan, start)


def test_the_proof_names_a_trained_block_that_did_not_change(backbone):
    plan = toy.plan(stem=1.0, middle=1.0)
    start = one_step(backbone, toy.plan(middle=1.0))
    with pytest.raises(FreezeProofError, match=r"changed: none; .* did not: \['stem'\]"):
        prove_frozen(backbone, plan, start)


def test_statistics_alone_do_not_count_as_trained(backbone):
    start = toy.copy_of(backbone)
    backbone.network[4].running_mean += 1.0
    with pytest.raises(FreezeProofError, match=r"did not: \['middle'\]"):
        prove_frozen(backbone, toy.plan(middle=1.0), start)


def test_a_block_without_signal_need_not_move_and_all_others_must(backbone):
    plan = toy.plan(stem=1.0, middle=1.0, head=1.0)
    start = one_step(backbone, toy.plan(head=1.0))
    with pytest.raises(FreezeProofError, match=r"did not: \['middle'\]"):
        prove_frozen(backbone, plan, start, without_signal={"stem"})
    prove_frozen(backbone, plan, start, without_signal={"stem", "middle"})


def test_a_frozen_block_that_changed_is_not_excused_by_having_no_signal(backbone):
    start = one_step(backbone, toy.plan(stem=1.0, head=1.0))
    with pytest.raises(FreezeProofError, match=r"changed: \['stem"):
        prove_frozen(backbone, toy.plan(head=1.0), start, without_signal={"stem"})


def test_a_gradient_is_zero_only_if_it_was_computed_and_is_exactly_zero(backbone):
    parameters = list(backbone.parameters_of("stem"))
    assert not has_zero_gradient(backbone, "stem")  # none at all
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    assert has_zero_gradient(backbone, "stem")
    parameters[-1].grad[0] = 1e-30
    assert not has_zero_gradient(backbone, "stem")
    parameters[-1].grad[0] = float("nan")
    assert not has_zero_gradient(backbone, "stem")
    parameters[-1].grad = None
    assert not has_zero_gradient(backbone, "stem")
