"""The search stage: evolve plans on the prepared images, and keep the best one and the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from biotune.data.prepared import PreparedImages
from biotune.data.splits import stratified_folds
from biotune.finetuning.backbones import block_sizes, build_backbone, weights_identity
from biotune.finetuning.fitness import FOLD_SEED
from pipeline.artifacts import check_writable, write_csv, write_json
from pipeline.attempts import tracked_attempts
from pipeline.evolving.confirmation import CLEAR_LEAD, CONFIRMATION_SEEDS, Confirmation
from pipeline.evolving.loop import EvaluatedCandidate, SearchResult, evolve, new_search
from pipeline.home import biotune_home
from pipeline.params import Params, SearchParams
from pipeline.reporting.console import percent, print_plan, print_table
from pipeline.reporting.plots import search_figures
from pipeline.reporting.rows import confirmation_row, evaluation_row, tracked_genome
from pipeline.tracking.stage_run import StageRun, tracked_stage
from pipeline.trials.machine import check_training, describe, resolve_compute
from pipeline.trials.pool import TrainerSetup, WorkerPool
from pipeline.trials.runs import TrainingRuns
from pipeline.trials.side_by_side import resolve_workers
from pipeline.trials.store import EvaluationStore, shared_inputs


@dataclass(frozen=True)
class SearchFiles:
    """Where the search stage writes."""

    best_plan: Path
    evaluations: Path
    confirmations: Path
    metrics: Path


def run(params: Params, *, prepared: Path, files: SearchFiles) -> SearchResult:
    """Search for the best plan, confirm it, write it down, and print it block by block.

    Args:
        params: the sections ``search``, ``model``, ``runtime`` and ``tracking`` are used.
        prepared: folder that the prepare stage wrote.
        files: to write; each appears whole, when the search is done.

    Raises:
        ValueError, OSError: before any training, for inputs that cannot be used.
        SearchFailedError, LostWorkerError, FreezeProofError: as they say.
    """
    home = biotune_home()
    model, section = params.model, params.search
    compute = resolve_compute(params.runtime, model.backbone)
    images, sizes = _checked_inputs(params, prepared)
    check_training(section, len(images.classes))
    check_writable(files.best_plan, files.evaluations, files.confirmations, files.metrics)
    identity = weights_identity(model.backbone, model.weights)
    inputs = shared_inputs(images.fingerprint, model.backbone, identity, compute)
    workers = resolve_workers(params.runtime.workers, compute.device)
    cache = params.runtime.feature_cache_bytes // workers
    setup = TrainerSetup(prepared, model.backbone, model.weights, compute, cache)
    print(f"Training on {describe(compute)}; {workers} at a time")
    with (
        closing(EvaluationStore(home, inputs)) as store,
        tracked_stage("search", params, images.fingerprint, home) as tracked,
        tracked_attempts(store, tracked) as attempts,
        WorkerPool(setup, workers, attempts.note, store.put) as pool,
        _Progress(params, sizes, tracked) as progress,
    ):
        tracked.tags({"biotune.compute": describe(compute)})
        runs = TrainingRuns(store, pool)
        result = evolve(section, tuple(sizes), runs, progress.evaluated, progress.confirmed)
        headline = _headline(result, sum(sizes.values()))
        evaluations = _write(result, files, sum(sizes.values()), headline)
        tracked.metrics(headline)
        tracked.artifacts([files.best_plan, files.evaluations, files.confirmations])
        tracked.figures(lambda: search_figures(evaluations))
    _print_summary(result, sizes, section, headline)
    for one in attempts:
        print(f"Tried again: seed {one.task.seed} of {one.task.plan}, because of {one.reason}")
    return result


def _checked_inputs(params: Params, prepared: Path) -> tuple[PreparedImages, dict[str, int]]:
    """The images, and each block's number of parameters; what is wrong is found before training."""
    images = PreparedImages.open(prepared)
    images.check_files()
    for split in ("train", "validation"):  # that every class has enough images for the folds
        stratified_folds(images.labels[images.indices(split)], params.search.folds, FOLD_SEED)
    # The workers build it too; here only to find what is wrong with the weights before they start.
    backbone = build_backbone(params.model.backbone, params.model.weights, len(images.classes))
    backbone.check_image_size(images.image_size)
    return images, block_sizes(params.model.backbone, len(images.classes))


@dataclass
class _Progress:
    """Shows and tracks every evaluation as soon as it is known."""

    params: Params
    sizes: dict[str, int]
    tracked: StageRun
    best: float = field(default=1.0, init=False)

    def __enter__(self) -> _Progress:
        section = self.params.search
        candidates = new_search(section, tuple(self.sizes)).planned_evaluations
        # The best recipe is confirmed beside the top k; it may be one of them.
        confirmations = section.confirm_top_k + 1
        self.planned = candidates * len(section.training_seeds) + confirmations * CONFIRMATION_SEEDS
        self.bar = tqdm(total=self.planned, desc="search", unit="run", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def evaluated(self, one: EvaluatedCandidate) -> None:
        total = sum(self.sizes.values())
        self.tracked.child(tracked_genome(one, self.params.search.base_lr, total))
        self.best = min(self.best, one.candidate.fitness)
        self.bar.set_postfix_str(f"best fitness {self.best:.4f}", refresh=False)
        self._count(len(one.runs), len(self.params.search.training_seeds))

    def confirmed(self, one: Confirmation) -> None:
        self._count(len(one.runs), CONFIRMATION_SEEDS)
        accuracy = percent(1 - one.evaluation.fitness, 2)
        dropped = f", dropped after {len(one.runs)} seeds" if one.dropped else ""
        self.bar.write(f"confirmed {one.name}: validation score {accuracy}{dropped}")

    def _count(self, done: int, planned: int) -> None:
        """Runs that racing saved are no longer to come."""
        self.planned -= planned - done
        self.bar.total = self.planned
        self.bar.update(done)


def _write(
    result: SearchResult, files: SearchFiles, total: int, headline: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Write all files; the rows of ``evaluations.csv``."""
    evaluations = [evaluation_row(one, total) for one in result.evaluated]
    write_csv(files.evaluations, evaluations, list(evaluations[0]))
    confirmations = [confirmation_row(one, total) for one in result.confirmations]
    write_csv(files.confirmations, confirmations, list(confirmations[0]))
    write_json(files.metrics, headline)
    winner, recipe = result.winner, result.best_recipe
    write_json(
        files.best_plan,
        {
            "blocks": dict(winner.plan),
            "genome": winner.candidate.genome.to_list() if winner.candidate else None,
            "fitness": winner.evaluation.fitness,
            "name": winner.name,
            "best_recipe": {
                "blocks": dict(recipe.plan),
                "fitness": recipe.evaluation.fitness,
                "name": recipe.name,
            },
        },
    )
    return evaluations


def _headline(result: SearchResult, total: int) -> dict[str, float]:
    """The figures that sum up a search, confirmed on fresh seeds."""
    winner = result.winner.evaluation
    return {
        "fitness": winner.fitness,
        "validation_score": 1 - winner.fitness,
        "best_recipe_validation_score": 1 - result.best_recipe.evaluation.fitness,
        "trained_parameters": winner.trained_parameters or 0,
        "trained_share": (winner.trained_parameters or 0) / total,
        "evaluations": len(result.evaluated),
        "stopped": sum(_is_stopped(one) for one in result.evaluated),
        "runs": sum(len(one.runs) for one in result.evaluated),
        "epochs": sum(one.epochs for one in result.evaluated),
    }


def _is_stopped(one: EvaluatedCandidate) -> bool:
    return one.candidate.evaluation is not None and one.candidate.evaluation.outcome == "stopped"


def _print_summary(
    result: SearchResult,
    sizes: dict[str, int],
    section: SearchParams,
    headline: Mapping[str, float],
) -> None:
    planned = len(result.evaluated) * len(section.training_seeds)
    print(
        f"{headline['evaluations']} candidates, {headline['stopped']} of them stopped as hopeless; "
        f"{headline['runs']} of {planned} runs, {headline['epochs']} epochs"
    )
    rows = [
        (
            one.name + (" (best recipe)" if one.recipe else ""),
            f"{len(one.runs)}{' (dropped)' if one.dropped else ''}",
            percent(1 - one.evaluation.fitness, 2),
            f"{one.evaluation.brier:.4f}" if one.evaluation.brier is not None else "",
            percent((one.evaluation.trained_parameters or 0) / sum(sizes.values())),
        )
        for one in result.confirmations
    ]
    title = "Confirmed: mean of fresh seeds"
    columns = ["plan", "seeds", "validation score", "Brier", "parameters trained"]
    print_table(title, columns, rows)
    best, recipe = result.confirmations[0], result.best_recipe
    if result.winner is recipe and best is not recipe and not best.dropped:
        lead, standard_error = best.lead_over(recipe)
        print(
            f"{best.name} leads the best recipe by {100 * lead:.2f} points, which is no clear lead "
            f"(more than {100 * CLEAR_LEAD * standard_error:.2f}): the recipe wins."
        )
    print_plan(f"The winner: {result.winner.name}", result.winner.plan, sizes, section.base_lr)
