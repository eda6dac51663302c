"""Real digits, few and small, and the real pretrained network on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import Trainer
from biotune.images import DigitsSource, prepare_images
from tests import threads


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    with threads.one_thread():
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 digits to train on, 40 to validate on, at 48 pixels.

    At 32 pixels so many features of the pretrained network are dead that the middle blocks get no
    gradient at all.
    """
    folder = tmp_path_factory.mktemp("digits") / "prepared"
    source = DigitsSource()
    prepare_images(source, folder, image_size=48, train_images=40, validation_images=40, seed=0)
    return folder


@pytest.fixture(scope="session")
def trainer(digits: Path) -> Trainer:
    """Trains EfficientNet-Lite0 from ImageNet on them; every task starts from those weights."""
    return Trainer(digits, "efficientnet_lite0", "imagenet", Compute())
