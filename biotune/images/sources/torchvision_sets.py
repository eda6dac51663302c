"""The data sets of torchvision that BioTune was published with, in their official splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRAIN_VALIDATION_TEST: Final = {"train": "train", "validation": "val", "test": "test"}
TRAIN_TEST: Final = {"train": "train", "test": "test"}
FLAGS: Final = {"train": True, "test": False}


@dataclass(frozen=True)
class TorchvisionSet:
    """How torchvision has one data set.

    Attributes:
        class_name: in ``torchvision.datasets``.
        splits: our name of each split → what the class takes for it.
        argument: under what name it takes it, ``split`` or ``train``.
        labels: the attribute that holds the labels of all images.
        classes: how many there are.
        images: number of images of each split, as published.
        by_hand: what to download, and where to put it below ``prepare.path``, where the computer
            has no connection.
    """

    class_name: str
    splits: Mapping[str, object]
    argument: str
    labels: str
    classes: int
    images: Mapping[str, int]
    by_hand: str

    def is_in(self, folder: Path) -> bool:
        """Whether the data set is downloaded already, to this folder."""
        try:
            for value in self.splits.values():
                self.make(folder, **{self.argument: value}, download=False)
        except Exception:  # torchvision, tarfile and scipy each have their own
            return False
        return True

    def make(self, folder: Path, **arguments: object) -> Any:
        """Torchvision's data set, of one split."""
        from torchvision import datasets  # a slow import that other sources do not need

        return getattr(datasets, self.class_name)(folder, **arguments)


TORCHVISION_SETS: Final[Mapping[str, TorchvisionSet]] = {
    "flowers102": TorchvisionSet(
        class_name="Flowers102",
        splits=TRAIN_VALIDATION_TEST,
        argument="split",
        labels="_labels",
        classes=102,
        images={"train": 1_020, "validation": 1_020, "test": 6_149},
        by_hand="102flowers.tgz (unpacked too), imagelabels.mat and setid.mat from "
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ into flowers-102/",
    ),
    "fgvcaircraft": TorchvisionSet(
        class_name="FGVCAircraft",
        splits=TRAIN_VALIDATION_TEST,
        argument="split",
        labels="_labels",
        classes=100,
        images={"train": 3_334, "validation": 3_333, "test": 3_333},
        by_hand="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
        "fgvc-aircraft-2013b.tar.gz, unpacked to fgvc-aircraft-2013b/",
    ),
    "dtd": TorchvisionSet(
        class_name="DTD",
        splits=TRAIN_VALIDATION_TEST,
        argument="split",
        labels="_labels",
        classes=47,
        images={"train": 1_880, "validation": 1_880, "test": 1_880},
        by_hand="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz, unpacked to "
        "dtd/dtd/",
    ),
    "cifar10": TorchvisionSet(
        class_name="CIFAR10",
        splits=FLAGS,
        argument="train",
        labels="targets",
        classes=10,
        images={"train": 50_000, "test": 10_000},
        by_hand="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz, unpacked to "
        "cifar-10-batches-py/",
    ),
    "stl10": TorchvisionSet(
        class_name="STL10",
        splits=TRAIN_TEST,
        argument="split",
        labels="labels",
        classes=10,
        images={"train": 5_000, "test": 8_000},
        by_hand="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz, unpacked to "
        "stl10_binary/",
    ),
    "mnist": TorchvisionSet(
        class_name="MNIST",
        splits=FLAGS,
        argument="train",
        labels="targets",
        classes=10,
        images={"train": 60_000, "test": 10_000},
        by_hand="the four *-ubyte.gz of https://ossci-datasets.s3.amazonaws.com/mnist/, unpacked "
        "into MNIST/raw/",
    ),
    "usps": TorchvisionSet(
        class_name="USPS",
        splits=FLAGS,
        argument="train",
        labels="targets",
        classes=10,
        images={"train": 7_291, "test": 2_007},
        by_hand="usps.bz2 and usps.t.bz2 from "
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html",
    ),
    "svhn": TorchvisionSet(
        class_name="SVHN",
        splits=TRAIN_TEST,
        argument="split",
        labels="labels",
        classes=10,
        images={"train": 73_257, "test": 26_032},
        by_hand="train_32x32.mat and test_32x32.mat from http://ufldl.stanford.edu/housenumbers/",
    ),
}
"""By what ``prepare.source`` calls them. SVHN is without its 531,131 extra images, DTD is its first
partition, FGVC-Aircraft is told apart by variant (100 classes)."""


class TorchvisionSource:
    """One of torchvision's data sets, downloaded by torchvision when it is first used.

    Args:
        name: a key of :data:`TORCHVISION_SETS`.
        folder: torchvision's ``root``; it is made if there is none.

    Raises:
        OSError: if the data set is neither there nor to be downloaded; says how to get it by hand.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._kind = TORCHVISION_SETS[name]
        parts = {
            split: _open(name, self._kind, {self._kind.argument: value}, folder)
            for split, value in self._kind.splits.items()
        }
        self._parts = list(parts.values())
        self._begins = np.cumsum([0, *(len(part) for part in self._parts)])
        labels = [np.asarray(getattr(part, self._kind.labels)) for part in self._parts]
        self.labels: NDArray[np.int64] = np.concatenate(labels).astype(np.int64)
        self.splits = [split for split, part in parts.items() for _ in range(len(part))]
        self.paths = [path for split, part in parts.items() for path in _paths(part, split, folder)]
        self.classes = _classes(self._parts[0], self.labels)

    def load(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 RGB ``[H, W, 3]``; grey ones get three equal channels."""
        part = int(np.searchsorted(self._begins, index, side="right")) - 1
        image, _ = self._parts[part][index - int(self._begins[part])]
        return np.asarray(image.convert("RGB"))


def _open(name: str, kind: TorchvisionSet, split: Mapping[str, object], folder: Path) -> Any:
    try:
        # It downloads only what is not there.
        return kind.make(folder, **split, download=True)
    except Exception as error:  # torchvision, urllib, tarfile and scipy each have their own
        raise OSError(
            f"prepare.source: {name} cannot be read from {folder} or downloaded ({error}); get it "
            f"by hand: {kind.by_hand}, below {folder}"
        ) from error


def _paths(part: Any, split: str, folder: Path) -> list[str]:
    """Paths below the folder, where images are files, else the split and a number."""
    files = getattr(part, "_image_files", None)
    if files is None:
        return [f"{split}/{index:06d}" for index in range(len(part))]
    return [Path(file).relative_to(folder).as_posix() for file in files]


def _classes(part: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Classes as the data set names them; USPS and SVHN have digits and no names."""
    named = getattr(part, "classes", None)
    if named is None:
        return tuple(str(label) for label in range(int(labels.max()) + 1))
    return tuple(str(name) for name in named)
