"""The evaluators that ``benchmarks/evaluator.py`` compares: each adds one thing to the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.naive import NaiveEvaluator
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import Compute, TrainingSettings
from biotune.plan import FineTunePlan
from pipeline.compute import resolve_compute

Runner = Callable[[FineTunePlan, TrainingSettings, int], Sequence[float]]
"""Trains a plan with a seed; the validation accuracy after each epoch."""


@dataclass(frozen=True)
class Setup:
    """What every lever trains: a network, and a folder with the images in both forms."""

    work: Path
    backbone: str
    weights: str
    image_size: int

    @property
    def prepared(self) -> Path:
        return self.work / "prepared"

    @property
    def files(self) -> Path:
        return self.work / "files"


def naive(setup: Setup) -> Runner:
    def run(plan: FineTunePlan, settings: TrainingSettings, seed: int) -> Sequence[float]:
        return evaluator.train(plan, settings, seed)

    evaluator = NaiveEvaluator(
        setup.files, setup.image_size, setup.backbone, setup.weights, setup.work / "best.pt"
    )
    return run


def in_memory(setup: Setup) -> Runner:
    trainer = _ContiguousTrainer(setup.prepared, setup.backbone, setup.weights, Compute())
    train = _runner(trainer)
    adam = torch.optim.Adam

    def run(plan: FineTunePlan, settings: TrainingSettings, seed: int) -> Sequence[float]:
        with mock.patch("torch.optim.Adam", lambda groups, fused: adam(groups)):
            return train(plan, settings, seed)

    return run


def channels_last(setup: Setup) -> Runner:
    return _runner(Trainer(setup.prepared, setup.backbone, setup.weights, Compute()))


def automatic_precision(setup: Setup) -> Runner:
    compute = resolve_compute("cpu", "auto")
    return _runner(Trainer(setup.prepared, setup.backbone, setup.weights, compute))


LEVERS: dict[str, Callable[[Setup], Runner]] = {
    "naive": naive,
    "images in memory, one network": in_memory,
    "channels_last, fused Adam": channels_last,
    "precision auto": automatic_precision,
}


class _ContiguousTrainer(Trainer):
    """Ours, with network and images in torch's default memory format."""

    def __init__(self, prepared: Path, backbone: str, weights: str, compute: Compute) -> None:
        super().__init__(prepared, backbone, weights, compute)
        network = self.backbone.network.to(memory_format=torch.contiguous_format)
        self._pretrained = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        first_module = next(iter(self.backbone.blocks.values()))[0]
        first_module.register_forward_pre_hook(_make_contiguous)


def _make_contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)


def _runner(trainer: Trainer) -> Runner:
    def run(plan: FineTunePlan, settings: TrainingSettings, seed: int) -> Sequence[float]:
        return trainer.train(TrainingTask(plan, seed, settings)).curve.validation_accuracy

    return run
