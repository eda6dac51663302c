"""The fitness of a plan: short fine-tuning runs, one for each training seed, on a fold's images.

Φ = 1 − mean over seeds of the best validation score (section 2 of the method).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from biotune.data.division import AS_PREPARED, Division
from biotune.data.prepared import PreparedImages
from biotune.finetuning.backbones import Backbone, build_backbone
from biotune.finetuning.compute import Compute
from biotune.finetuning.feature_cache import FeatureCache
from biotune.finetuning.learning_curve import LearningCurve
from biotune.finetuning.progress import ProgressFile
from biotune.finetuning.training import FitResult, ImageSubset, TrainingSettings, fit
from biotune.plan import Evaluation, FineTunePlan, Outcome


@dataclass(frozen=True)
class TrainingTask:
    """One training run: everything that decides its outcome, but data, network and machine.

    Attributes:
        plan: what to train, and how fast.
        seed: the training seed.
        settings: epochs, patience, batch size, base_lr.
        division: of the images that it trains and validates on.
        must_reach: when to stop the run as hopeless; see :func:`~.training.fit`. It does not change
            the epochs before.
    """

    plan: FineTunePlan
    seed: int
    settings: TrainingSettings
    division: Division = AS_PREPARED
    must_reach: tuple[float, ...] = ()


class Trainer:
    """Runs training tasks, one after another, on one network that is reset in place.

    Args:
        prepared: folder of the prepared images.
        backbone: name of the network.
        weights: its pretrained weights.
        compute: device and precision.
        feature_cache_bytes: how much the features of frozen prefixes may take. It changes nothing
            but time; see :mod:`biotune.finetuning.feature_cache`.
    """

    def __init__(
        self,
        prepared: Path,
        backbone: str,
        weights: str,
        compute: Compute,
        feature_cache_bytes: int = 0,
    ) -> None:
        self.prepared = PreparedImages.open(prepared)
        self.compute = compute
        compute.set_up()
        self.backbone: Backbone = build_backbone(
            backbone,
            weights,
            len(self.prepared.classes),
            for_cpu=compute.device_type == "cpu",
        )
        self.backbone.to(compute.device)
        if compute.compile:
            for layer in self.backbone.layers:
                layer.compile()
        learned_from = [self.prepared.indices(split) for split in ("train", "validation")]
        self.cache = FeatureCache(
            self.backbone,
            self.prepared.images,
            compute,
            feature_cache_bytes,
            np.concatenate(learned_from),
        )
        self._pretrained = {n: t.clone() for n, t in self.backbone.network.state_dict().items()}

    def train(
        self,
        task: TrainingTask,
        *,
        keep_best: bool = False,
        on_epoch: Callable[[], None] | None = None,
        progress: ProgressFile | None = None,
    ) -> FitResult:
        """Train as a task says, from the pretrained weights.

        A run that runs out of memory is tried once more with empty caches, then it counts as
        ``infeasible``; a loss that is no number as ``diverged``. Neither raises.

        Args:
            task: what to train.
            keep_best, on_epoch, progress: see :func:`~biotune.finetuning.training.fit`.

        Raises:
            ValueError: if the plan does not fit the network, or the folds do not fit the data.
            FreezeProofError: if a frozen block moved or a trained one did not.
            OSError: if the progress cannot be written.
        """
        out_of_memory: tuple[str, ...] = ()
        while len(out_of_memory) < 2:
            try:
                result = self._attempt(task, keep_best, on_epoch, progress)
                return replace(result, out_of_memory=out_of_memory)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                said = str(error).partition("\n")[0] or type(error).__name__
                out_of_memory += (said,)
            # Not inside `except`: there the traceback still holds the failed run's tensors.
            self._empty_caches()
        infeasible = LearningCurve((), (), (), 0, "infeasible", 0.0)
        return FitResult(infeasible, None, out_of_memory)

    def _attempt(
        self,
        task: TrainingTask,
        keep_best: bool,
        on_epoch: Callable[[], None] | None,
        progress: ProgressFile | None,
    ) -> FitResult:
        self.backbone.network.load_state_dict(self._pretrained)
        train, validation = map(self._images, task.division.indices(self.prepared))
        return fit(
            self.backbone,
            task.plan,
            train,
            validation,
            task.settings,
            seed=task.seed,
            fold=task.division.fold,
            must_reach=task.must_reach,
            compute=self.compute,
            cache=self.cache,
            keep_best=keep_best,
            on_epoch=on_epoch,
            progress=progress,
        )

    def subset(self, split: str) -> ImageSubset:
        """The images of a split."""
        return self._images(self.prepared.indices(split))

    def _images(self, indices: NDArray[np.int64]) -> ImageSubset:
        return ImageSubset(self.prepared.images, self.prepared.labels, indices)

    def _empty_caches(self) -> None:
        self.cache.clear()
        gc.collect()
        if torch.device(self.compute.device).type == "cuda":
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU's memory ran out, Python's, or torch's on a CPU, which says so in words."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def evaluate(curves: Sequence[LearningCurve]) -> Evaluation:
    """Fitness of a plan from its runs, one for each training seed.

    Returns:
        fitness 1 − mean best validation score, and the mean Brier score at those epochs. If any
        run failed, the plan failed: fitness 1, outcome ``infeasible`` or else ``diverged``.

    Raises:
        ValueError: for no runs.
    """
    if not curves:
        raise ValueError("the fitness of a plan needs at least one training run, got none")
    parameters = max(curve.trained_parameters for curve in curves)
    outcomes = {curve.outcome for curve in curves}
    if outcomes != {"finished"}:
        outcome: Outcome = "infeasible" if "infeasible" in outcomes else "diverged"
        return Evaluation(1.0, None, parameters, outcome)
    scores = [curve.validation_score[curve.best_epoch] for curve in curves]
    briers = [curve.validation_brier[curve.best_epoch] for curve in curves]
    return Evaluation(1.0 - float(np.mean(scores)), float(np.mean(briers)), parameters)
