"""One contract for all networks: the paper's four, others of torchvision, and timm's.

Random weights, and the smallest images that each network trains on.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from biotune.deployment.export import export_onnx
from biotune.deployment.predictor import Predictor
from biotune.deployment.verify import compare
from biotune.finetuning.backbones import (
    Backbone,
    block_sizes,
    build_backbone,
    convolution_family,
)
from biotune.finetuning.batchnorm import FastBatchNorm2d
from biotune.finetuning.checkpoints import ModelCard
from biotune.finetuning.compute import Compute
from biotune.finetuning.convolutions import DepthwiseConv2d, PointwiseConv2d
from biotune.finetuning.feature_cache import FeatureCache, cut_of, network_input
from biotune.finetuning.freezing import set_training_mode
from biotune.finetuning.training import (
    ImageSubset,
    TrainingSettings,
    fit,
    predict_probabilities,
)
from biotune.plan import FineTunePlan
from tests.biotune.finetuning import toy

CLASSES = 3

SIZES = {
    "efficientnet_lite0": 32,
    "resnet50": 32,
    "densenet121": 32,
    "vgg19": 32,
    "inception_v3": 299,
    "mobilenet_v3_small": 32,
    "squeezenet1_1": 32,
    "convnext_tiny": 32,
    "timm/vit_tiny_patch16_224": 224,
    "timm/resnet18d": 32,
    "timm/convnext_atto": 32,
    "timm/mobilenetv3_small_050": 32,
}

BLOCKS = {
    "efficientnet_lite0": ["stem", *(f"blocks.{i}" for i in range(7)), "conv_head", "classifier"],
    "resnet50": ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"],
    "densenet121": [
        *("conv0", "denseblock1", "transition1", "denseblock2", "transition2"),
        *("denseblock3", "transition3", "denseblock4", "classifier"),
    ],
    "vgg19": ["stage1", "stage2", "stage3", "stage4", "stage5", "classifier"],
    "inception_v3": [
        *("stem", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"),
        *("Mixed_6d", "Mixed_6e", "AuxLogits", "Mixed_7a", "Mixed_7b", "Mixed_7c", "fc"),
    ],
}
"""Section 1 of the method."""


QUICK = ("efficientnet_lite0", "squeezenet1_1", "timm/resnet18d", "timm/convnext_atto")
"""In ``make test``: the default, one without BatchNorm, residual connections, LayerNorm."""


@pytest.fixture(
    scope="module",
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SIZES
    ],
)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return build_backbone(request.param, "none", CLASSES)


def images(backbone: Backbone, count: int = 6) -> ImageSubset:
    size = SIZES[backbone.name]
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSubset(pixels, labels, np.arange(count, dtype=np.int64))


def noise(backbone: Backbone) -> torch.Tensor:
    size = SIZES[backbone.name]
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return pixels.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_are_the_papers(name):
    assert list(block_sizes(name, CLASSES)) == BLOCKS[name]


def test_every_tensor_is_in_one_block_and_the_head_depends_on_the_classes(backbone):
    names = [name for block in backbone.blocks for name in backbone.tensor_names(block)]
    assert sorted(names) == sorted(backbone.network.state_dict())
    assert len(set(names)) == len(names)
    assert backbone.new & set(backbone.tensor_names(backbone.head))
    sizes = block_sizes(backbone.name, CLASSES)
    assert list(sizes) == list(backbone.blocks)
    for block, size in sizes.items():
        assert size == sum(p.numel() for p in backbone.parameters_of(block)) > 0


@torch.inference_mode()
def test_running_on_from_any_block_is_running_the_network(backbone):
    pixels = noise(backbone)
    logits = backbone.network(pixels)
    assert logits.shape == (2, CLASSES)
    first_layers = [block.first_layer for block in backbone.blocks.values()]
    assert len(set(first_layers)) > 3, "features of frozen prefixes can be kept"
    for index, layer in enumerate([*first_layers, len(backbone.layers)]):
        features = backbone.run_layers(0, layer, pixels)
        assert torch.allclose(backbone.forward_from(index, features), logits, atol=1e-5)


def test_any_blocks_can_be_frozen_and_the_others_move(backbone):
    """The freeze proof is in ``fit``; each block is frozen once and trained once, or more."""
    start = toy.copy_of(backbone)
    rng = np.random.default_rng(1)
    mask = rng.random(len(backbone.blocks)) < 0.5
    mask[-1] = True
    subset = images(backbone)
    settings = TrainingSettings(1, 1, 6, 1e-3)
    for trained in (mask, ~mask):
        plan = FineTunePlan(
            {block: 1.0 if t else None for block, t in zip(backbone.blocks, trained, strict=True)}
        )
        backbone.network.load_state_dict(start)
        result = fit(backbone, plan, subset, subset, settings, seed=0)
        assert result.curve.outcome == "finished"
        now = backbone.network.state_dict()
        for block, multiplier in plan.items():
            # What depends on the classes is initialised anew, trained or not.
            kept = [n for n in backbone.tensor_names(block) if n not in backbone.new]
            same = all(torch.equal(now[n], start[n]) for n in kept)
            assert same == (multiplier is None) or not kept, block
    backbone.network.load_state_dict(start)


def test_a_kept_prefix_gives_the_same_bits(backbone):
    start, subset = toy.copy_of(backbone), images(backbone)
    blocks = list(backbone.blocks)
    trained = blocks[len(blocks) // 2 :]
    plan = FineTunePlan({block: 1.0 if block in trained else None for block in blocks})
    assert cut_of(backbone, plan) > 0
    curves = []
    kept = FeatureCache(backbone, subset.images, Compute(), 100_000_000)
    for cache in (None, kept):
        backbone.network.load_state_dict(start)
        settings = TrainingSettings(2, 2, 3, 1e-3)
        result = fit(backbone, plan, subset, subset, settings, seed=0, cache=cache)
        curves.append((result.curve.train_loss, toy.copy_of(backbone)))
    assert kept.used > 0
    assert curves[0][0] == curves[1][0]
    assert toy.equal(curves[0][1], curves[1][1])
    backbone.network.load_state_dict(start)


@pytest.mark.parametrize(
    "precision",
    ["fp32", pytest.param("bf16", marks=pytest.mark.slow)],  # emulated by most
)
@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "mobilenet_v3_small", "timm/mobilenetv3_small_050"]
)
def test_with_layers_for_a_cpu_it_is_the_same_network_and_trains(name, precision):
    plain = build_backbone(name, "none", CLASSES)
    fast = build_backbone(name, "none", CLASSES, for_cpu=True)
    assert convolution_family(name) == "depthwise"
    kinds = {type(module) for module in fast.network.modules()}
    assert {DepthwiseConv2d, PointwiseConv2d, FastBatchNorm2d} <= kinds
    assert toy.equal(toy.copy_of(plain), toy.copy_of(fast))
    pixels = noise(plain)
    with torch.inference_mode():
        assert torch.allclose(fast.network(pixels), plain.network(pixels), atol=1e-5)
    plan = FineTunePlan(dict.fromkeys(fast.blocks, 1.0))
    subset, compute = images(fast), Compute("cpu", precision)
    result = fit(
        fast, plan, subset, subset, TrainingSettings(1, 1, 3, 1e-3), seed=0, compute=compute
    )
    assert result.curve.outcome == "finished"


def test_its_gradients_are_those_of_torchs_layers():
    """Of the whole network in training, where one layer's fault would reach all before it."""
    gradients = []
    for for_cpu in (False, True):
        backbone = build_backbone("efficientnet_lite0", "imagenet", CLASSES, for_cpu=for_cpu)
        backbone.reset_head(0)
        backbone.network.train()
        logits = backbone.network(noise(backbone))
        backbone.loss(logits, torch.arange(len(logits)) % CLASSES).backward()
        gradients.append({n: p.grad for n, p in backbone.network.named_parameters()})
    plain, fast = gradients
    assert plain.keys() == fast.keys()
    for name, expected in plain.items():
        difference = (fast[name] - expected).norm()
        assert difference <= 1e-2 * expected.norm() + 1e-6, name


@torch.no_grad()
def tell_images_apart(backbone: Backbone, subset: ImageSubset) -> None:
    """A random network says nearly the same of any image; then a wrong graph would not show."""
    for module in backbone.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # its statistics become those of these images
            module.train()
    pixels = network_input(subset.images, backbone, Compute())
    backbone.network(pixels)
    backbone.network.eval()
    logits = backbone.network(pixels)
    (path,) = {
        n.rpartition(".")[0] for n in backbone.new & set(backbone.tensor_names(backbone.head))
    }
    last = backbone.network.get_submodule(path)
    scale = 1 / logits.std(dim=0).mean()
    last.weight *= scale
    last.bias.sub_(logits.mean(dim=0)).mul_(scale)


def test_the_exported_network_agrees_with_torch(backbone, tmp_path):
    subset = images(backbone, 4)
    card = ModelCard(
        backbone=backbone.name,
        classes=tuple("abc"),
        plan=FineTunePlan(dict.fromkeys(backbone.blocks, 1.0)),
        name="random",
        image_size=SIZES[backbone.name],
        mean=backbone.mean,
        std=backbone.std,
        validation_score=0.5,
        precision="fp32",
    )
    tell_images_apart(backbone, subset)
    expected = predict_probabilities(backbone, subset)
    assert expected.std(axis=0).max() > 0.03
    file = Path(tmp_path, "model.onnx")
    export_onnx(backbone, card, file)
    predictor = Predictor(file, device="cpu")
    for size in (1, 4):
        chosen = list(subset.images[subset.indices])
        answers = [predictor.probabilities(chosen[i : i + size]) for i in range(0, 4, size)]
        assert compare(np.concatenate(answers), expected).largest_difference < 1e-3


def test_families_of_convolutions():
    assert convolution_family("resnet50") == convolution_family("vit_b_16") == "dense"
    assert convolution_family("convnext_tiny") == "other_depthwise"  # 7 x 7, with a bias


def test_inceptions_side_head_counts_while_it_is_trained_and_is_off_otherwise():
    backbone = build_backbone("inception_v3", "none", CLASSES)
    subset = images(backbone)
    pixels = noise(backbone)
    targets = torch.tensor([0, 1])
    assert backbone.side is not None
    for trained in (True, False):
        chosen = {b: 1.0 if trained or b != "AuxLogits" else None for b in backbone.blocks}
        set_training_mode(backbone, FineTunePlan(chosen))
        logits = backbone.run_layers(0, len(backbone.layers), pixels)
        plain = torch.nn.functional.cross_entropy(logits, targets)
        expected = plain
        if trained:
            aside = torch.nn.functional.cross_entropy(backbone.side.logits, targets)
            expected = plain + 0.4 * aside
        assert (backbone.side.logits is not None) == trained
        assert torch.equal(backbone.loss(logits, targets), expected)
    predict_probabilities(backbone, subset)
    assert backbone.side.logits is None


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 224, "inception_v3 cannot be trained on images of 224 pixels"),
        ("vit_b_16", 64, "vit_b_16 cannot be trained on images of 64 pixels"),
        ("timm/pit_ti_224", 224, "a block of it hands on more than one tensor"),
    ],
)
def test_images_that_a_network_cannot_take_are_a_clear_error(name, size, message):
    backbone = build_backbone(name, "none", CLASSES)
    before = toy.copy_of(backbone)
    with pytest.raises(ValueError, match=message):
        backbone.check_image_size(size)
    assert toy.equal(toy.copy_of(backbone), before)
    assert not backbone.network.training


@pytest.mark.slow
def test_densenets_published_names_and_files_without_counters_are_read(tmp_path):
    plain = build_backbone("densenet121", "none", CLASSES)
    legacy = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor + 1
        for name, tensor in plain.network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in legacy
    torch.save(legacy, tmp_path / "densenet.pth")
    loaded = build_backbone("densenet121", str(tmp_path / "densenet.pth"), CLASSES)
    for name, tensor in loaded.network.state_dict().items():
        if name not in loaded.new and not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, plain.network.state_dict()[name] + 1), name


def test_the_blocks_of_a_transformer_have_names_that_say_what_they_are():
    names = list(block_sizes("timm/vit_tiny_patch16_224", CLASSES))
    assert names[0] == "stem"
    assert names[1:-1] == [f"blocks.{i}" for i in range(12)][: len(names) - 2]


def test_a_tag_that_a_model_does_not_have_is_a_clear_error():
    with pytest.raises(ValueError, match=r"model.backbone: 'timm/resnet18.nothing'"):
        build_backbone("timm/resnet18.nothing", "none", CLASSES)


@pytest.mark.slow
def test_the_frozen_beginning_of_torchvisions_transformers_can_be_kept():
    """Its position embedding is a parameter beside all modules."""
    backbone = build_backbone("vit_b_16", "none", CLASSES)
    trained = list(backbone.blocks)[-1]
    plan = FineTunePlan({block: 1.0 if block == trained else None for block in backbone.blocks})
    pixels = np.zeros((2, 224, 224, 3), dtype=np.uint8)
    cache = FeatureCache(backbone, pixels, Compute(), 10_000_000)
    set_training_mode(backbone, plan)
    with torch.no_grad():
        features = cache.features(np.arange(2), cut_of(backbone, plan))
        logits = backbone.run_layers(cut_of(backbone, plan), len(backbone.layers), features)
        expected = backbone.network(network_input(pixels, backbone, Compute()))
    assert cache.used > 0
    assert torch.allclose(logits, expected, atol=1e-5)
