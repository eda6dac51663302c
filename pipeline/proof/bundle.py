"""What the folder to deploy holds beside its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biotune.data.prepared import describe_file
from biotune.deployment.bundle import (
    CARD_FILE,
    LABELS_FILE,
    MODEL_FILE,
    SAMPLES_FILE,
    TRITON_FOLDER,
    VERIFICATION_FILE,
    write_samples,
)
from biotune.deployment.predictor import Predictor
from biotune.deployment.triton import write_triton_repository
from pipeline.artifacts import write_json
from pipeline.proof.originals import Pixels


def complete_bundle(
    folder: Path,
    predictors: Mapping[str, Predictor],
    samples: Sequence[Pixels],
    figures: Mapping[str, Any],
    card: str,
) -> None:
    """Write all that goes with the models; last of all ``verification.json``, with every checksum.

    Args:
        folder: has the models.
        predictors: format → its model, all of the same classes.
        samples: images to keep, with what each model says of them.
        figures: of the proof.
        card: text of the model card.
    """
    answers = {
        predictor.path.name: predictor.probabilities(samples) for predictor in predictors.values()
    }
    write_samples(folder / SAMPLES_FILE, list(samples), answers)
    classes = predictors["fp32"].classes
    write_json(folder / LABELS_FILE, {"classes": list(classes)})
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    write_triton_repository(folder / TRITON_FOLDER, folder / MODEL_FILE, classes)
    files = {file.name: describe_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
    write_json(folder / VERIFICATION_FILE, {**figures, "files": files})
