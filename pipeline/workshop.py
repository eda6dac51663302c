"""What search and finetune open alike: images, network, machine, workers, store and tracking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from biotune.data.prepared import PreparedImages
from biotune.finetuning.backbones import Backbone, build_backbone, weights_identity
from biotune.finetuning.compute import Compute
from pipeline.artifacts import csv_text
from pipeline.home import biotune_home
from pipeline.params import FinetuneParams, Params, SearchParams
from pipeline.tracking.stage_run import StageRun, tracked_stage
from pipeline.trials.code_version import code_hash
from pipeline.trials.machine import check_training, describe, resolve_compute
from pipeline.trials.pool import InProcess, WorkerPool
from pipeline.trials.runs import Attempt, TrainingRuns
from pipeline.trials.side_by_side import resolve_workers
from pipeline.trials.store import EvaluationStore, shared_inputs
from pipeline.trials.worker import TrainerSetup


@dataclass(frozen=True)
class Workshop:
    """What trainings are made of; made, and checked before anything is trained, by :meth:`check`.

    Attributes:
        params: all of ``params.yaml``.
        home: see :func:`pipeline.home.biotune_home`.
        prepared: folder that the prepare stage wrote.
        images: of that folder.
        backbone: the network with its pretrained weights; the workers build their own.
        compute: device and precision.
        workers: how many train side by side, at least 1.
    """

    params: Params
    home: Path
    prepared: Path
    images: PreparedImages
    backbone: Backbone
    compute: Compute
    workers: int

    @classmethod
    def check(
        cls, params: Params, section: SearchParams | FinetuneParams, prepared: Path
    ) -> Workshop:
        """Open images, network and device, and find what is wrong with them.

        Raises:
            ValueError, OSError: for inputs that cannot be used.
        """
        images = PreparedImages.open(prepared)
        images.check_files()
        model, runtime = params.model, params.runtime
        backbone = build_backbone(model.backbone, model.weights, len(images.classes))
        backbone.check_image_size(images.image_size)
        check_training(section, len(images.classes))
        compute = resolve_compute(runtime, model.backbone)
        return cls(
            params=params,
            home=biotune_home(),
            prepared=prepared,
            images=images,
            backbone=backbone,
            compute=compute,
            workers=resolve_workers(runtime.workers, compute.device),
        )

    @contextmanager
    def open(self, stage: str) -> Iterator[tuple[TrainingRuns, StageRun]]:
        """Store, workers and tracking of a stage, until it is left.

        Runs that were tried again are tracked as ``attempts.csv``, also of a stage that fails.
        """
        with (
            closing(EvaluationStore(self.home, self._inputs())) as store,
            tracked_stage(stage, self.params, self.images.fingerprint, self.home) as tracked,
            self._open_workers() as workers,
        ):
            tracked.tags({"biotune.compute": describe(self.compute)})
            runs = TrainingRuns(store, workers)
            try:
                yield runs, tracked
            finally:
                track_attempts(tracked, runs.attempts)

    def _inputs(self) -> dict[str, object]:
        model = self.params.model
        return shared_inputs(
            fingerprint=self.images.fingerprint,
            backbone=model.backbone,
            weights=weights_identity(model.backbone, model.weights),
            compute=self.compute,
        )

    def _open_workers(self) -> WorkerPool | InProcess:
        model, cache = self.params.model, self.params.runtime.feature_cache_bytes
        setup = TrainerSetup(
            prepared=self.prepared,
            backbone=model.backbone,
            weights=model.weights,
            compute=self.compute,
            feature_cache_bytes=cache // self.workers,
            code=code_hash(),
        )
        in_process = self.params.runtime.workers == 0
        return InProcess(setup) if in_process else WorkerPool(setup, self.workers)


def track_attempts(tracked: StageRun, attempts: list[Attempt]) -> None:
    """Keep them with the stage's run, if there were any."""
    if attempts:
        rows = [attempt.row() for attempt in attempts]
        tracked.text("attempts.csv", csv_text(rows, list(rows[0])))
