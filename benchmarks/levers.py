"""The evaluators that ``benchmarks/evaluator.py`` compares: each adds one thing to the last.

Each runs in a process of its own, so that they share neither caches nor an allocator's habits, and
the memory that it holds is its own.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.naive import NaiveEvaluator
from benchmarks.processes import forked_after
from biotune.finetuning.backbones import Backbone, block_sizes, build_backbone
from biotune.finetuning.compute import Compute, keep_freed_memory
from biotune.finetuning.fitness import Trainer, TrainingTask
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan


class Evaluator(Protocol):
    """Trains a plan with a seed; returns the validation score after each epoch."""

    def train(
        self, plan: FineTunePlan, settings: TrainingSettings, seed: int
    ) -> Sequence[float]: ...


@dataclass(frozen=True)
class Setup:
    """A network, a folder with the images in both forms, and what the last levers use of theirs."""

    work: Path
    backbone: str
    weights: str
    image_size: int
    compute: Compute
    feature_cache_bytes: int

    @property
    def prepared(self) -> Path:
        return self.work / "prepared"

    @property
    def files(self) -> Path:
        return self.work / "files"


@dataclass(frozen=True)
class Measured:
    """One training run, measured.

    Attributes:
        accuracies: validation score after each epoch.
        cpu_seconds: of the process, in the run.
        wall_seconds: of the run.
        prefix_seconds: the CPU seconds of these in which images were normalised and a frozen prefix
            was computed; 0 for the naive evaluator, which knows no prefix.
    """

    accuracies: Sequence[float]
    cpu_seconds: float
    wall_seconds: float
    prefix_seconds: float


class Ours:
    """Our evaluator, as an :class:`Evaluator`.

    Args:
        setup: what it trains.
        compute: how.
        feature_cache_bytes: for features of frozen prefixes.
        layers: with our layers on a CPU, in the place of torch's.
    """

    def __init__(
        self,
        setup: Setup,
        compute: Compute,
        feature_cache_bytes: int = 0,
        *,
        layers: bool = True,
    ) -> None:
        def build(*args: Any, for_cpu: bool) -> Backbone:
            return build_backbone(*args, for_cpu=for_cpu and layers)

        with mock.patch("biotune.finetuning.fitness.build_backbone", build):
            self.trainer = Trainer(
                setup.prepared, setup.backbone, setup.weights, compute, feature_cache_bytes
            )
        self.prefix_seconds = 0.0
        self._compute_prefix = self.trainer.cache._computed

    def train(self, plan: FineTunePlan, settings: TrainingSettings, seed: int) -> Sequence[float]:
        with mock.patch.object(self.trainer.cache, "_computed", self._timed_prefix):
            return self.trainer.train(TrainingTask(plan, seed, settings)).curve.validation_score

    def _timed_prefix(self, indices: NDArray[np.int64], cut: int) -> Tensor:
        begin = time.process_time()
        features = self._compute_prefix(indices, cut)
        self.prefix_seconds += time.process_time() - begin
        return features


class OursContiguous(Ours):
    """Ours, with network and images in torch's default memory format, and its default Adam."""

    def __init__(self, setup: Setup, compute: Compute) -> None:
        super().__init__(setup, compute, layers=False)
        trainer = self.trainer
        network = trainer.backbone.network.to(memory_format=torch.contiguous_format)
        for layer in trainer.backbone.layers:  # what a prefix hands on is channels_last
            layer.register_forward_pre_hook(_make_contiguous)
        # As it was made, so that the reset copies like to like.
        trainer._pretrained = {n: tensor.clone() for n, tensor in network.state_dict().items()}

    def train(self, plan: FineTunePlan, settings: TrainingSettings, seed: int) -> Sequence[float]:
        adam = torch.optim.Adam
        with mock.patch("torch.optim.Adam", lambda groups, fused: adam(groups)):
            return super().train(plan, settings, seed)


def _make_contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)


def naive(setup: Setup) -> Evaluator:
    best = setup.work / "best.pt"
    device = setup.compute.device
    return NaiveEvaluator(
        setup.files, setup.image_size, setup.backbone, setup.weights, best, device
    )


def in_memory(setup: Setup) -> Evaluator:
    return OursContiguous(setup, _plain(setup))


def channels_last(setup: Setup) -> Evaluator:
    return Ours(setup, _plain(setup), layers=False)


def _plain(setup: Setup) -> Compute:
    """The precision of the naive evaluator, which is torch's default."""
    compute = setup.compute
    return Compute(compute.device, "tf32" if compute.device_type == "cuda" else "fp32")


def precision(setup: Setup) -> Evaluator:
    return Ours(setup, setup.compute)


def feature_cache(setup: Setup) -> Evaluator:
    return Ours(setup, setup.compute, setup.feature_cache_bytes)


def freed_memory_kept(setup: Setup) -> Evaluator:
    keep_freed_memory()
    return feature_cache(setup)


LEVERS: dict[str, Callable[[Setup], Evaluator]] = {
    "naive": naive,
    "images in memory, one network": in_memory,
    "channels_last, fused Adam": channels_last,
    "our layers, precision": precision,
    "prefix feature cache": feature_cache,
    "freed memory kept": freed_memory_kept,
}


class LeverProcess:
    """One lever in a process of its own, on one thread; a context manager that ends it.

    Args:
        lever: name of one of :data:`LEVERS`.
        setup: what it trains.
    """

    def __init__(self, lever: str, setup: Setup) -> None:
        self._pool = ProcessPoolExecutor(
            1, forked_after(__name__, "timm"), initializer=_start, initargs=(lever, setup)
        )

    def train(self, plan: FineTunePlan, settings: TrainingSettings, seed: int) -> Future[Measured]:
        """Train a plan in the lever's process."""
        return self._pool.submit(_train, plan, settings, seed)

    def peak_memory(self) -> float:
        """MiB that the evaluator has held at most, beside the libraries; of a GPU's, on one."""
        return self._pool.submit(_peak_memory).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclass
class _Here:
    """What such a process holds: its evaluator, and the MiB that the libraries took."""

    evaluator: Evaluator
    device: torch.device
    libraries: float


_here: list[_Here] = []


def _start(lever: str, setup: Setup) -> None:
    torch.set_num_threads(1)
    block_sizes(setup.backbone, 2)  # loads the last of the libraries
    libraries = _most_memory_so_far()
    device = torch.device(setup.compute.device)
    _here.append(_Here(LEVERS[lever](setup), device, libraries))


def _train(plan: FineTunePlan, settings: TrainingSettings, seed: int) -> Measured:
    evaluator = _here[0].evaluator
    gc.collect()
    prefix = _prefix_seconds(evaluator)
    wall, cpu = time.perf_counter(), time.process_time()
    accuracies = evaluator.train(plan, settings, seed)
    if _here[0].device.type == "cuda":
        torch.cuda.synchronize(_here[0].device)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Measured(accuracies, cpu, wall, _prefix_seconds(evaluator) - prefix)


def _prefix_seconds(evaluator: Evaluator) -> float:
    return evaluator.prefix_seconds if isinstance(evaluator, Ours) else 0.0


def _peak_memory() -> float:
    if _here[0].device.type == "cuda":
        return torch.cuda.max_memory_allocated(_here[0].device) / 2**20
    return _most_memory_so_far() - _here[0].libraries


def _most_memory_so_far() -> float:
    """In MiB. Not getrusage's maximum: a child begins with its parent's there."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1024
