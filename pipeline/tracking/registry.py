"""MLflow's model registry: every exported model a version, the best one the champion."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_FOLDER: Final = "model"
ANSWERS_FILE: Final = "test_answers.json"
"""Which test images a version classifies right: an artifact of its run."""

CHAMPION, CHALLENGER = "champion", "challenger"
_DECISION_TAG: Final = "biotune.decision"

IMPORTING_MLFLOW: Final = threading.Lock()
"""Held while a thread imports MLflow. Its modules import each other: were two threads to begin at
different ones, Python would let one of them see a module that is half there."""


@dataclass(frozen=True)
class Registered:
    """What the registry is told of a model.

    Attributes:
        name: of the registered model.
        described: metrics and hashes, as the model's file holds them.
        test: SHA-256 of the test images and labels.
        right: a ``1`` for each test image that it classifies right, else a ``0``, in their order.
    """

    name: str
    described: Mapping[str, Any]
    test: str
    right: str

    def tags(self) -> dict[str, str]:
        """For the version: where it came from, and how good it is."""
        hashes = {f"biotune.{name}": value for name, value in self.described["hashes"].items()}
        accuracy = {"biotune.test_accuracy": f"{self.described['metrics']['accuracy']:.4f}"}
        return {**hashes, **accuracy, "biotune.test": self.test}

    def answers(self) -> str:
        """What :data:`ANSWERS_FILE` holds."""
        return json.dumps({"test": self.test, "right": self.right})


def write_mlflow_model(onnx_file: Path, folder: Path, example: NDArray[np.uint8]) -> None:
    """Write a model as MLflow's ONNX flavour: one file, with signature and input example.

    Args:
        onnx_file: the exported model.
        folder: to write.
        example: uint8 [1, height, width, 3], small.
    """
    with IMPORTING_MLFLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, of the type hints of a class of its own
        import mlflow.onnx
        import mlflow.pyfunc.model  # which the other would import when it is used
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = onnx.load(onnx_file)
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), "image")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes), "probabilities")]),
    )
    # Named, because MLflow would find them out by loading the model in a process of its own.
    requirements = [
        f"{name}=={version(name)}" for name in ("mlflow", "numpy", "onnx", "onnxruntime")
    ]
    mlflow.onnx.save_model(
        model,
        str(folder),
        signature=signature,
        input_example={"image": example},
        pip_requirements=requirements,
        save_as_external_data=False,
    )


def register(
    client: MlflowClient, run_id: str, key_tag: tuple[str, str], content: Mapping[str, Any]
) -> None:
    """Make a version of a model whose files are artifacts of a run, and say which one is best.

    What was half done before is completed: the version is found by its tag.

    Args:
        client: of the tracking server.
        run_id: the export stage's run.
        key_tag: name and value of the tag that tells this version from any other.
        content: ``name``, ``tags``, ``test`` and ``right``, as :class:`Registered` has them.
    """
    made = _version(client, run_id, key_tag, content)
    if _DECISION_TAG in made.tags:
        return
    champion = _champion(client, content["name"])
    better, reason = _decide(client, champion, made, content)
    alias = CHAMPION if better else CHALLENGER
    client.set_registered_model_alias(content["name"], alias, made.version)
    client.set_model_version_tag(content["name"], made.version, _DECISION_TAG, f"{alias}: {reason}")


def _version(
    client: MlflowClient, run_id: str, key_tag: tuple[str, str], content: Mapping[str, Any]
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    name, (tag, key) = content["name"], key_tag
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for earlier in client.search_model_versions(f"run_id = '{run_id}'"):
        if earlier.name == name and earlier.tags.get(tag) == key:
            return earlier
    artifacts = client.get_run(run_id).info.artifact_uri
    tags = {**content["tags"], tag: key}
    return client.create_model_version(name, f"{artifacts}/{MODEL_FOLDER}", run_id, tags)


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases
    if CHAMPION not in aliases:
        return None
    return client.get_model_version(name, str(aliases[CHAMPION]))


def _decide(
    client: MlflowClient,
    champion: ModelVersion | None,
    made: ModelVersion,
    content: Mapping[str, Any],
) -> tuple[bool, str]:
    """Whether a new version is to be the champion, and why."""
    if champion is None:
        return True, "there was no other"
    if champion.version == made.version:  # moved before, and then cut off
        return True, "it was better"
    answers = _answers_of(client, champion)
    before = f"version {champion.version}"
    if answers is None or answers["test"] != content["test"]:
        return False, f"{before} was tested on other images: they cannot be compared"
    return compare_answers(content["right"], answers["right"], before)


def compare_answers(right: str, champion_right: str, champion: str) -> tuple[bool, str]:
    """Whether a model is better than the champion on the same test images.

    It is if the 95 % interval of the difference in accuracy, by a paired bootstrap over the images,
    lies above zero.

    Args:
        right: ``1`` for each image that the model classifies right, else ``0``.
        champion_right: the same of the champion.
        champion: what to call it.

    Returns:
        Whether it is, and the figures for people.
    """
    from biotune.finetuning.metrics import mean_interval  # torch and scipy

    new, old = (np.array([bit == "1" for bit in each]) for each in (right, champion_right))
    difference = new.astype(np.float64) - old.astype(np.float64)
    low, high = mean_interval(difference)
    points = f"{100 * difference.mean():+.2f} points of test accuracy against {champion}"
    return low > 0, f"{points} (95 % interval {100 * low:+.2f} to {100 * high:+.2f})"


def _answers_of(client: MlflowClient, version: ModelVersion) -> dict[str, str] | None:
    """What a version's run keeps of its answers; None for one that we did not make."""
    if version.run_id is None:
        return None
    if ANSWERS_FILE not in {file.path for file in client.list_artifacts(version.run_id)}:
        return None
    file = client.download_artifacts(version.run_id, ANSWERS_FILE)
    answers: dict[str, str] = json.loads(Path(file).read_text(encoding="utf-8"))
    return answers
