"""One model, one server and some images for all tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from biotune.deployment.predictor import Prediction, Predictor
from tests.exported import Exported
from tests.serve_process import ServeProcess


@pytest.fixture(scope="session")
def served_model(exported: Exported) -> Path:
    return exported.path


@pytest.fixture(scope="session")
def predictor(served_model: Path) -> Predictor:
    return Predictor(served_model, device="cpu", threads=1)


@pytest.fixture(scope="session")
def server(served_model: Path) -> Iterator[ServeProcess]:
    with ServeProcess(served_model, ("--body-timeout", "1", "--max-body", "2")) as process:
        yield process


@pytest.fixture(scope="session")
def digits() -> list[tuple[str, bytes]]:
    """Names and PNG files, 8 x 8 pixels as they are in scikit-learn."""
    grey = (load_digits().images[:24] * 255 / 16).round().astype(np.uint8)
    return [(f"{number}.png", png(image)) for number, image in enumerate(grey)]


@pytest.fixture(scope="session")
def expected(predictor: Predictor, digits: list[tuple[str, bytes]]) -> dict[str, Prediction]:
    """What the model says of each digit, without a server."""
    return {prediction.source: prediction for prediction in predictor.predict(digits)}


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
