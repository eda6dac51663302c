"""torchvision's own classes, on tiny files in the formats in which the data sets are published.

torchvision checks MD5 sums of some; its tables are patched with those of the tiny files, and
everything that it does besides is done here too. Nothing is downloaded.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv
from PIL import Image
from scipy.io import savemat

from biotune.images import TorchvisionSource, open_source, prepare_images
from biotune.images.sources.torchvision_sets import TORCHVISION_SETS

PER_CLASS = {"train": 3, "test": 2}


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def pictures(count: int, side: int, channels: int, seed: int) -> np.ndarray:
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def digits(split: str) -> np.ndarray:
    return np.tile(np.arange(10, dtype=np.uint8), PER_CLASS[split])


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    sums, expected = [], {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = digits(split)
        images = pictures(len(labels), 28, 1, len(labels))
        expected[split] = (images.repeat(3, axis=3), labels)
        for kind, content in (
            ("images-idx3", struct.pack(">iiii", 2051, len(labels), 28, 28) + images.tobytes()),
            ("labels-idx1", struct.pack(">ii", 2049, len(labels)) + labels.tobytes()),
        ):
            file = raw / f"{prefix}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(content))
            sums.append((file.name, md5(file)))
    monkeypatch.setattr(tv.MNIST, "resources", sums)
    return expected


@pytest.fixture
def usps(tmp_path, monkeypatch):
    expected, table = {}, {}
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        labels = digits(split)
        # The file has greys from -1 to 1; these are halves of them, exact in decimal.
        images = np.round(pictures(len(labels), 16, 1, len(labels)) / 255 * 8) / 4 - 1
        lines = [
            f"{label + 1} " + " ".join(f"{i + 1}:{v}" for i, v in enumerate(image.ravel()))
            for label, image in zip(labels, images, strict=True)
        ]
        (tmp_path / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))
        url = tv.USPS.split_list[split][0]
        table[split] = (url, name, md5(tmp_path / name))
        greys = ((images + 1) / 2 * 255).astype(np.uint8)
        expected[split] = (greys.repeat(3, axis=3), labels)
    monkeypatch.setattr(tv.USPS, "split_list", table)
    return expected


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    expected, table = {}, {}
    for split in ("train", "test"):
        labels = digits(split)
        images = pictures(len(labels), 32, 3, len(labels))
        file = tmp_path / f"{split}_32x32.mat"
        ones_to_tens = np.where(labels == 0, 10, labels).astype(np.uint8)
        savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": ones_to_tens[:, None]})
        table[split] = [tv.SVHN.split_list[split][0], file.name, md5(file)]
        expected[split] = (images, labels)
    monkeypatch.setattr(tv.SVHN, "split_list", table)
    return expected


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    (folder / "unlabeled_X.bin").write_bytes(b"")
    expected = {}
    for split in ("train", "test"):
        labels = digits(split)
        images = pictures(len(labels), 96, 3, len(labels))
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
        expected[split] = (images, labels)
    for table in ("train_list", "test_list"):
        sums = [[name, md5(folder / name)] for name, _ in getattr(tv.STL10, table)]
        monkeypatch.setattr(tv.STL10, table, sums)
    return expected


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    expected = {}
    for split, table in (("train", "train_list"), ("test", "test_list")):
        parts, sums = [], []
        for number, (name, _) in enumerate(getattr(tv.CIFAR10, table)):
            labels = np.arange(10) if split == "train" else digits(split)
            images = pictures(len(labels), 32, 3, number)
            rows = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
            (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
            sums.append([name, md5(folder / name)])
            parts.append((images, labels))
        monkeypatch.setattr(tv.CIFAR10, table, sums)
        expected[split] = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    meta = tv.CIFAR10.meta | {"md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(tv.CIFAR10, "meta", meta)
    return expected


def flat(colours: np.ndarray, side: int = 24) -> np.ndarray:
    """Pictures of one colour each, which JPEG keeps but for rounding."""
    return np.broadcast_to(colours[:, None, None, :], (len(colours), side, side, 3))


def save_all(images: np.ndarray, files: list[Path]) -> None:
    for image, file in zip(images, files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, quality=95, subsampling=0)


@pytest.fixture
def flowers102(tmp_path, monkeypatch):
    base = tmp_path / "flowers-102"
    labels = np.tile(np.arange(102), 3)
    images = flat(pictures(len(labels), 1, 3, 0)[:, 0, 0])
    save_all(images, [base / "jpg" / f"image_{i + 1:05d}.jpg" for i in range(len(labels))])
    savemat(base / "imagelabels.mat", {"labels": (labels + 1)[None]})
    third = np.arange(1, 103)
    ids = {"trnid": third[None] + 204, "valid": third[None] + 102, "tstid": third[None]}
    savemat(base / "setid.mat", ids)
    table = tv.Flowers102._file_dict | {
        kind: (name, md5(base / name))
        for kind, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(tv.Flowers102, "_file_dict", table)
    return {
        "train": (images[204:], labels[204:]),
        "validation": (images[102:204], labels[102:204]),
        "test": (images[:102], labels[:102]),
    }


@pytest.fixture
def fgvcaircraft(tmp_path):
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    variants = ["707-320", "727-200", "A300B4"]
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("\n".join(variants) + "\n")
    expected = {}
    for place, (split, name) in enumerate(TORCHVISION_SETS["fgvcaircraft"].splits.items()):
        labels = np.tile(np.arange(3), 2)
        images = flat(pictures(6, 1, 3, place)[:, 0, 0])
        ids = [f"{place}{i:06d}" for i in range(6)]
        save_all(images, [data / "images" / f"{stem}.jpg" for stem in ids])
        lines = [f"{stem} {variants[label]}" for stem, label in zip(ids, labels, strict=True)]
        (data / f"images_variant_{name}.txt").write_text("\n".join(lines) + "\n")
        expected[split] = (images, labels)
    return expected


@pytest.fixture
def dtd(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    kinds = ["banded", "blotchy", "braided"]
    (base / "labels").mkdir(parents=True)
    expected = {}
    for place, (split, name) in enumerate(TORCHVISION_SETS["dtd"].splits.items()):
        labels = np.repeat(np.arange(3), 2)
        images = flat(pictures(6, 1, 3, place)[:, 0, 0])
        files = [f"{kinds[k]}/{kinds[k]}_{place}{i:03d}.jpg" for i, k in enumerate(labels)]
        save_all(images, [base / "images" / file for file in files])
        (base / "labels" / f"{name}1.txt").write_text("\n".join(files) + "\n")
        expected[split] = (images, labels)
    return expected


@pytest.mark.parametrize("name", list(TORCHVISION_SETS))
def test_a_set_has_its_images_labels_names_and_official_splits(name, tmp_path, request):
    assert not TORCHVISION_SETS[name].is_in(tmp_path)
    expected = request.getfixturevalue(name)
    source = open_source(name, tmp_path)
    assert TORCHVISION_SETS[name].is_in(tmp_path)
    assert source.name == name
    assert source.splits is not None
    assert list(dict.fromkeys(source.splits)) == list(expected)
    assert len(set(source.paths)) == len(source.paths) == len(source.labels)
    tolerance = 6 if name in ("flowers102", "fgvcaircraft", "dtd") else 0  # JPEG
    for split, (images, labels) in expected.items():
        indices = [i for i, part in enumerate(source.splits) if part == split]
        assert source.labels[indices].tolist() == labels.tolist()
        for index, image in zip(indices, images, strict=True):
            loaded = source.load(index)
            assert loaded.dtype == np.uint8
            assert loaded.shape == image.shape
            assert np.abs(loaded.astype(int) - image).max() <= tolerance


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("flowers102", 102, "pink primrose", "blackberry lily"),
        ("fgvcaircraft", 3, "707-320", "A300B4"),
        ("dtd", 3, "banded", "braided"),
        ("cifar10", 10, "airplane", "truck"),
        ("stl10", 10, "airplane", "truck"),
        ("mnist", 10, "0 - zero", "9 - nine"),
        ("usps", 10, "0", "9"),
        ("svhn", 10, "0", "9"),
    ],
)
def test_classes_have_names(name, count, first, last, tmp_path, request):
    request.getfixturevalue(name)
    classes = TorchvisionSource(name, tmp_path).classes
    assert (len(classes), classes[0], classes[-1]) == (count, first, last)


def test_one_is_prepared_in_its_splits(mnist, tmp_path):
    prepared = prepare_images(
        TorchvisionSource("mnist", tmp_path),
        tmp_path / "prepared",
        image_size=28,
        train_images=None,
        validation_images=10,
        seed=0,
    )
    assert [len(prepared.indices(s)) for s in ("train", "validation", "test")] == [20, 10, 20]
    assert np.array_equal(prepared.images[prepared.indices("test")], mnist["test"][0])


@pytest.mark.parametrize("name", list(TORCHVISION_SETS))
def test_what_cannot_be_downloaded_says_how_to_get_it_by_hand(name, tmp_path, monkeypatch):
    def away(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", away)
    with pytest.raises(OSError, match=rf"{name} cannot be read .*unreachable.* by hand: .*http"):
        TorchvisionSource(name, tmp_path)
