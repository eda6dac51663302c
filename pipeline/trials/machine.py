"""What the sections of ``params.yaml`` mean for training on this machine."""

from __future__ import annotations

import torch

from biotune.finetuning.backbones import convolution_family
from biotune.finetuning.compute import Compute
from biotune.finetuning.hardware import fastest_precision, instruction_set
from biotune.finetuning.metrics import check_metric
from biotune.finetuning.training import TrainingSettings
from pipeline.params import FinetuneParams, RuntimeParams, SearchParams


def resolve_device(device: str) -> str:
    """What ``runtime.device`` means on this machine; ``auto`` is CUDA where there is one.

    Raises:
        ValueError: if the named device is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    index = torch.device(device).index or 0
    if device != "cpu" and index >= torch.cuda.device_count():
        raise ValueError(
            f"runtime.device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; use 'auto' or 'cpu'"
        )
    return device


def resolve_compute(runtime: RuntimeParams, backbone: str) -> Compute:
    """How to train this network on this machine.

    ``precision: auto`` is what :func:`biotune.finetuning.hardware.fastest_precision` says.

    Raises:
        ValueError: if the named device is not there, or cannot compute in the named precision, or
            for an unknown backbone.
    """
    device = resolve_device(runtime.device)
    precision = runtime.precision
    if precision == "auto":
        precision = fastest_precision(convolution_family(backbone), device)
    return Compute(device, precision, runtime.compile)


def training_settings(section: SearchParams | FinetuneParams) -> TrainingSettings:
    """How each run of a stage is trained."""
    return TrainingSettings(
        epochs=section.epochs,
        patience=section.patience,
        batch_size=section.batch_size,
        base_lr=section.base_lr,
        metric=section.metric,
        class_weights=section.class_weights,
        label_smoothing=section.label_smoothing,
        augment=section.augment,
    )


def check_training(section: SearchParams | FinetuneParams, classes: int) -> None:
    """Find what does not fit the images before anything is trained, and say what costs time.

    Raises:
        ValueError: for a metric that is not defined for so many classes.
    """
    check_metric(section.metric, classes)
    if section.augment != "none":
        print(
            f"Training images are changed at random ({section.augment}): what frozen blocks make "
            "of them is computed anew each time; of validation images it is kept."
        )


def describe(compute: Compute) -> str:
    """One line for people, such as ``cpu (AVX512), bf16``."""
    compiled = ", compiled" if compute.compile else ""
    return f"{compute.device} ({instruction_set(compute.device)}), {compute.precision}{compiled}"
