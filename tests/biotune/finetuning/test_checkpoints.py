"""A fine-tuned classifier comes back from disk as it was, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.checkpoints import ModelCard, load_model
from biotune.plan import FineTunePlan
from tests.biotune.finetuning import toy


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """As after training: its BatchNorm statistics are nobody's defaults."""
    built = build_backbone("efficientnet_lite0", "imagenet", 3)
    built.reset_head(5)
    return built


def card(network: Backbone, **changes) -> dict:
    plan = FineTunePlan({b: None if b == "stem" else 2.5 for b in network.blocks})
    whole = ModelCard(
        backbone=network.name,
        classes=("été", "冬", 'a "b"'),
        plan=plan,
        name="g3-1",
        image_size=64,
        mean=network.mean,
        std=network.std,
        validation_score=0.975,
        precision="fp32",
    )
    return {**whole.to_json(), **changes}


def write(folder: Path, network: Backbone, **changes) -> Path:
    """What the finetune stage leaves; the path of the tensors."""
    path = folder / "model.safetensors"
    save_file({n: t.contiguous() for n, t in network.network.state_dict().items()}, path)
    text = json.dumps(card(network, **changes), ensure_ascii=False)
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    return path


def test_a_model_comes_back_bit_by_bit_with_its_card(tmp_path, backbone):
    loaded, read = load_model(write(tmp_path, backbone))
    assert toy.equal(loaded.network.state_dict(), backbone.network.state_dict())
    assert read.to_json() == card(backbone)
    assert read.classes == ("été", "冬", 'a "b"')
    assert read.plan["stem"] is None
    assert isinstance(read.mean, tuple)
    assert not loaded.network.training
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded.network(images), backbone.network(images))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named_with_the_stage_to_run(tmp_path, backbone, name):
    path = write(tmp_path, backbone)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"there is no .*{name}; run the finetune stage"):
        load_model(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "{}", '"card"'], ids=lambda text: text or "empty"
)
def test_a_card_that_is_none_is_refused(tmp_path, backbone, text):
    path = write(tmp_path, backbone)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(
        ValueError, match=r"(?s)are no model of this version .*run the finetune stage"
    ):
        load_model(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "alexnet"},
        {"backbone": ["resnet50"]},
        {"backbone": "resnet50"},
        {"classes": ["one", "two"]},
        {"classes": 3},
        {"plan": [1.0]},
        {"plan": {"stem": -1.0}},
        {"mean": [0.5, 0.5]},
        {"std": 0.5},
    ],
    ids=str,
)
def test_a_card_that_does_not_fit_the_tensors_is_refused(tmp_path, backbone, changes):
    path = write(tmp_path, backbone, **changes)
    with pytest.raises(
        ValueError, match=r"(?s)are no model of this version .*run the finetune stage"
    ):
        load_model(path)


@pytest.mark.parametrize("length", [0, 5, 100_000])
def test_tensors_cut_short_are_refused(tmp_path, backbone, length):
    path = write(tmp_path, backbone)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="are no model of this version"):
        load_model(path)


def test_a_missing_tensor_is_refused_and_named(tmp_path, backbone):
    path = write(tmp_path, backbone)
    tensors = load_file(path)
    del tensors["conv_head.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"(?s)are no model of this version.*conv_head\.weight"):
        load_model(path)
