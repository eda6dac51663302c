"""The search stage: evolve plans on the prepared images, and keep the best one and the evidence."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from biotune.data.division import Division
from biotune.finetuning.backbones import block_sizes
from biotune.finetuning.compute import Compute
from pipeline.artifacts import check_writable, write_csv, write_json
from pipeline.best_plan import write_best_plan
from pipeline.evolving.confirmation import (
    CLEAR_LEAD,
    Confirmation,
    confirm,
    contenders,
    most_runs,
)
from pipeline.evolving.loop import (
    EvaluatedCandidate,
    SearchResult,
    evolve,
    new_search,
    search_result,
)
from pipeline.evolving.summary import EvolutionSummary, early_end, evolution_summary
from pipeline.params import Params, SearchParams
from pipeline.reporting.console import percent, print_plan, print_table
from pipeline.reporting.plots import search_figures
from pipeline.reporting.rows import confirmation_row, evaluation_row
from pipeline.tracking.genome import tracked_genome
from pipeline.tracking.stage_run import StageRun
from pipeline.trials.machine import describe
from pipeline.workshop import Workshop


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
    section = params.search
    shop = Workshop.check(params, section, prepared)
    Division(0, section.folds).indices(shop.images)  # every class has enough images for the folds
    check_writable(files.best_plan, files.evaluations, files.confirmations, files.metrics)
    sizes = block_sizes(params.model.backbone, len(shop.images.classes))
    blocks = tuple(sizes)
    optimizer = new_search(section, blocks)
    print(f"Training on {describe(shop.compute)}; {shop.workers} at a time")
    with (
        # The optimizer's matrices are small: more threads would only wait, on the workers' cores.
        threadpool_limits(1, user_api="blas"),
        shop.open("search") as (runs, tracked),
        _Progress(section, sum(sizes.values()), tracked, optimizer.planned_evaluations) as progress,
    ):
        evaluated = [progress.show(told) for told in evolve(optimizer, section, runs)]
        if reason := early_end(optimizer):
            progress.end_early(reason, len(evaluated))
        chosen = contenders(optimizer, section, blocks)
        confirmed = [progress.confirm(plan) for plan in confirm(chosen, section, runs)]
        progress.finish()
        result = search_result(evaluated, confirmed)
        summary = evolution_summary(optimizer, result)
        headline = _headline(result, summary, sum(sizes.values()))
        evaluations = _evaluations(result, sum(sizes.values()), optimizer.elite_ids)
        _write(result, files, sum(sizes.values()), evaluations, headline, shop.compute)
        tracked.metrics(headline)
        tracked.tags({"biotune.winner_origin": summary.winner_origin})
        tracked.artifacts([files.best_plan, files.evaluations, files.confirmations])
        tracked.figures(lambda: search_figures(evaluations))
    _print_summary(result, sizes, section, headline)
    print("\n".join(summary.lines()))
    for attempt in runs.attempts:
        task = attempt.task
        print(f"Tried again: seed {task.seed} of {task.plan}, because of {attempt.reason}")
    return result


@dataclass
class _Progress:
    """Shows and tracks every candidate as soon as it is told."""

    section: SearchParams
    parameters: int
    tracked: StageRun
    candidates: int
    best: float = field(default=1.0, init=False)

    def __enter__(self) -> _Progress:
        self.planned = self.candidates * len(self.section.training_seeds) + most_runs(self.section)
        self.bar = tqdm(total=self.planned, desc="search", unit="run", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, told: EvaluatedCandidate) -> EvaluatedCandidate:
        row = evaluation_row(told, self.parameters)
        self.tracked.child(tracked_genome(told, row, self.section.base_lr))
        self.best = min(self.best, told.candidate.fitness)
        self.bar.set_postfix_str(f"best fitness {self.best:.4f}", refresh=False)
        self._count(len(told.runs), len(self.section.training_seeds))
        return told

    def end_early(self, reason: str, evaluated: int) -> None:
        self._count(0, (self.candidates - evaluated) * len(self.section.training_seeds))
        self.bar.write(reason)
        self.tracked.tags({"biotune.early_end": reason})

    def confirm(self, plan: Confirmation) -> Confirmation:
        self._count(len(plan.runs), len(plan.runs))
        accuracy = percent(1 - plan.evaluation.fitness, 2)
        dropped = f", dropped after {len(plan.runs)} seeds" if plan.dropped else ""
        self.bar.write(f"confirmed {plan.name}: validation score {accuracy}{dropped}")
        return plan

    def finish(self) -> None:
        """Nothing more is to come, though fewer runs were confirmed with than may have been."""
        self._count(0, self.planned - int(self.bar.n))

    def _count(self, done: int, planned: int) -> None:
        """Runs that racing or an early end saved are no longer to come."""
        self.planned -= planned - done
        self.bar.total = self.planned
        self.bar.update(done)


def _evaluations(
    result: SearchResult, total: int, elite_ids: Container[int]
) -> list[dict[str, Any]]:
    """The rows of ``evaluations.csv``; who was an elite is not known before a generation ends."""
    return [
        {**evaluation_row(told, total), "elite": told.candidate.id in elite_ids}
        for told in result.evaluated
    ]


def _write(
    result: SearchResult,
    files: SearchFiles,
    total: int,
    evaluations: list[dict[str, Any]],
    headline: Mapping[str, Any],
    compute: Compute,
) -> None:
    write_csv(files.evaluations, evaluations, list(evaluations[0]))
    confirmations = [confirmation_row(plan, total) for plan in result.confirmations]
    write_csv(files.confirmations, confirmations, list(confirmations[0]))
    write_json(files.metrics, headline)
    write_best_plan(files.best_plan, result, compute)


def _headline(result: SearchResult, summary: EvolutionSummary, total: int) -> dict[str, Any]:
    """The figures that sum up a search, the winner's confirmed on fresh seeds; flat, for DVC."""
    winner = result.winner.evaluation
    return {
        "fitness": winner.fitness,
        "validation_score": 1 - winner.fitness,
        "best_recipe_validation_score": 1 - result.best_recipe.evaluation.fitness,
        "trained_parameters": winner.trained_parameters or 0,
        "trained_share": (winner.trained_parameters or 0) / total,
        "evaluations": len(result.evaluated),
        "stopped": sum(_is_stopped(told) for told in result.evaluated),
        "runs": sum(len(told.runs) for told in result.evaluated),
        "epochs": sum(told.epochs for told in result.evaluated),
        **asdict(summary),
    }


def _is_stopped(told: EvaluatedCandidate) -> bool:
    return told.candidate.evaluation is not None and told.candidate.evaluation.outcome == "stopped"


def _print_summary(
    result: SearchResult,
    sizes: dict[str, int],
    section: SearchParams,
    headline: Mapping[str, Any],
) -> None:
    planned = len(result.evaluated) * len(section.training_seeds)
    print(
        f"{headline['evaluations']} candidates, {headline['stopped']} of them stopped as hopeless; "
        f"{headline['runs']} of {planned} runs, {headline['epochs']} epochs"
    )
    rows = [
        (
            plan.name + (" (best recipe)" if plan.recipe else ""),
            f"{len(plan.runs)}{' (dropped)' if plan.dropped else ''}",
            percent(1 - plan.evaluation.fitness, 2),
            f"{plan.evaluation.brier:.4f}" if plan.evaluation.brier is not None else "",
            percent((plan.evaluation.trained_parameters or 0) / sum(sizes.values())),
        )
        for plan in result.confirmations
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
