"""Weights from a file, a package or a download: the right ones, or a message that helps."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import Weights, WeightsEnum

from biotune.finetuning.backbones import build_backbone
from biotune.finetuning.weights import (
    WeightsError,
    file_identity,
    read_state_dict,
    torchvision_state_dict,
)
from tests.biotune.finetuning import toy

NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Of a network like a user's: other weights than ImageNet's, and 7 classes."""
    network = build_backbone(NAME, "none", 7).network
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


class Bomb:
    """Unpickled by anything that executes pickles, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def write(path: Path, state: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def enum_of(url: str) -> WeightsEnum:
    class TinyWeights(WeightsEnum):
        V1 = Weights(url=url, transforms=None, meta={})

    return TinyWeights.V1


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """torch hub's cache of downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
def test_a_state_dict_comes_back_from_its_file(tmp_path, name):
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(4)}
    assert toy.equal(read_state_dict(write(tmp_path / name, state)), state)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_network_takes_all_but_the_head_from_a_file_with_another_head(tmp_path, state, name):
    backbone = build_backbone(NAME, str(write(tmp_path / name, state)), 10)
    loaded = backbone.network.state_dict()
    head = backbone.tensor_names(backbone.head)
    assert loaded["classifier.weight"].shape == (10, 1280)
    assert all(torch.equal(loaded[name], state[name]) for name in loaded if name not in head)


def test_a_file_without_any_head_is_taken_too(tmp_path, state):
    headless = {name: t for name, t in state.items() if not name.startswith("classifier")}
    backbone = build_backbone(NAME, str(write(tmp_path / "headless.pt", headless)), 10)
    assert torch.equal(backbone.network.state_dict()["bn2.weight"], state["bn2.weight"])


def test_the_weights_of_another_network_are_refused(tmp_path, state):
    file = write(tmp_path / "other.safetensors", state)
    expected = (
        r"model\.weights: .*other\.safetensors does not fit resnet50: 261 tensors are missing and "
        r"4 have another shape, 'conv1\.weight' first\. Give the weights of a resnet50"
    )
    with pytest.raises(WeightsError, match=expected):
        build_backbone("resnet50", str(file), 10)


def test_a_tensor_of_another_shape_is_refused(tmp_path, state):
    file = write(tmp_path / "wide.pt", {**state, "conv_stem.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(WeightsError, match=r"0 tensors are missing and 1 have .*'conv_stem\.weig"):
        build_backbone(NAME, str(file), 10)


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors", "."])
def test_a_missing_file_is_named_with_what_may_be_given(tmp_path, name):
    with pytest.raises(WeightsError, match=r"there is no file .* Give 'imagenet', 'none', or the"):
        read_state_dict(tmp_path / name)


def test_a_malicious_pickle_is_refused_without_executing_it(tmp_path):
    for serialise in (torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))):
        file = tmp_path / "bomb.pt"
        serialise({"a": Bomb(tmp_path / "exploded")}, file)
        with pytest.raises(WeightsError, match=r"bomb\.pt is not a state dict of plain tensors"):
            read_state_dict(file)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(file.read_bytes())  # noqa: S301  (the bomb does work)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b"\xff\xd8\xff\xe0 a photo",
        b"\x80\x02X",
        b"\x80\x02e",
        b"{}",
        b"PK\x03\x04",
    ],
)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_of_something_else_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="is not a state dict of plain tensors"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": torch.ones(2), "epoch": 3}])
def test_a_file_of_more_than_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match="Save it as safetensors"):
        read_state_dict(tmp_path / "checkpoint.pt")


def test_the_identity_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    assert file_identity(tmp_path / "file") == hashlib.sha256(b"weights").hexdigest()


def published(folder: Path, digest: str | None = None) -> tuple[str, dict[str, torch.Tensor]]:
    """A file under a ``file:`` address, named with the first digits of its SHA-256."""
    state = {"a": torch.arange(3.0)}
    file = write(folder / "tiny.pth", state)
    digest = digest or hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return file.rename(folder / f"tiny-{digest}.pth").as_uri(), state


def test_a_download_is_checked_cached_and_read(tmp_path, cache):
    url, state = published(tmp_path)
    assert toy.equal(torchvision_state_dict(enum_of(url)), state)
    assert [file.name for file in cache.iterdir()] == [url.rsplit("/", 1)[1]]


def test_a_download_with_another_hash_is_refused(tmp_path, cache):
    url, _ = published(tmp_path, digest="00000000")
    with pytest.raises(WeightsError, match="invalid hash value"):
        torchvision_state_dict(enum_of(url))
    assert not list(cache.glob("*.pth"))


def test_a_file_put_into_the_cache_by_hand_needs_no_connection(cache):
    cache.mkdir(parents=True)
    state = {"a": torch.arange(3.0)}
    write(cache / "tiny-12345678.pth", state)
    weights = enum_of("http://127.0.0.1:9/tiny-12345678.pth")
    assert toy.equal(torchvision_state_dict(weights), state)


def test_a_failed_download_names_the_address_and_the_cache(cache):
    url = "http://127.0.0.1:9/resnet50-11ad3fa6.pth"  # nobody listens on the discard port
    with pytest.raises(WeightsError) as caught:
        torchvision_state_dict(enum_of(url))
    message = str(caught.value)
    assert "could not download or read TinyWeights.V1" in message
    assert f"Fetch {url} on another machine and put it into {cache}" in message
    assert "model.weights" in message


def test_a_damaged_file_in_the_cache_is_named_with_what_to_do(cache):
    cache.mkdir(parents=True)
    (cache / "tiny-12345678.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(WeightsError, match=r"Fetch http://127\.0\.0\.1:9/tiny-12345678\.pth"):
        torchvision_state_dict(enum_of("http://127.0.0.1:9/tiny-12345678.pth"))


def test_a_malicious_file_in_the_cache_is_not_executed(tmp_path, cache):
    cache.mkdir(parents=True)
    torch.save({"a": Bomb(tmp_path / "exploded")}, cache / "tiny-12345678.pth")
    with pytest.raises(WeightsError):
        torchvision_state_dict(enum_of("http://127.0.0.1:9/tiny-12345678.pth"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, value, suffix):
    file = tmp_path / f"diverged{suffix}"
    tensors = {"fine": torch.ones(2), "broken": torch.tensor([1.0, value])}
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
    with pytest.raises(WeightsError, match="broken holds values that are no numbers"):
        read_state_dict(file)
