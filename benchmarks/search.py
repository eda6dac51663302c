"""Whole searches, full fidelity against racing: what is saved, and is anything lost?

Every search seed is run twice on the same evaluator, once with ``racing: false`` and once with
``racing: true``, each from nothing known: no store, an empty feature cache. Which of the two goes
first alternates. CPU seconds are those of the training runs, one thread each; with several workers
the seeds are spread over processes.

What a search found is judged on images that it never saw: its winner is trained from five fresh
seeds, the best epoch by validation, and scored on the test split. After a search with racing, the
candidates that it stopped are trained to their end, to see which of them would have reached what
they needed. Neither is counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from benchmarks.held_out import held_out_accuracy
from benchmarks.reporting import describe_machine, markdown_table, one_line, prepare_digits
from biotune.finetuning.compute import keep_freed_memory
from biotune.finetuning.fitness import Trainer, TrainingTask, evaluate
from biotune.finetuning.learning_curve import LearningCurve
from biotune.plan import FineTunePlan
from pipeline.evolving import loop
from pipeline.evolving.confirmation import confirm, contenders
from pipeline.evolving.racing import FullTraining, Race, start_race
from pipeline.params import Params, load_params
from pipeline.trials.machine import resolve_compute, training_settings
from pipeline.trials.runs import TrainingRun

MODES: dict[str, bool] = {"full": False, "racing": True}
CACHE_BYTES = 1_000_000_000


class TimedRuns:
    """Trains in this process, one run at a time, and counts what it costs.

    What the search trained before is answered at no cost, as by the evaluation store.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._waiting: list[TrainingTask] = []
        self.complete: dict[TrainingTask, LearningCurve] = {}
        self.cpu_seconds, self.runs, self.epochs = 0.0, 0, 0
        trainer.cache.clear()

    def submit(self, task: TrainingTask) -> None:
        self._waiting.append(task)

    def next_finished(self) -> TrainingRun:
        task = self._waiting.pop(0)
        whole = replace(task, must_reach=())
        if whole in self.complete:
            return TrainingRun(task, self.complete[whole].raced(task.must_reach), from_store=True)
        begin = time.process_time()
        curve = self._trainer.train(task).curve
        self.cpu_seconds += time.process_time() - begin
        self.runs += 1
        self.epochs += len(curve.validation_score)
        if curve.outcome != "stopped":
            self.complete[whole] = curve
        return TrainingRun(task, curve, from_store=False)

    def spent(self) -> dict[str, float]:
        return {"cpu seconds": self.cpu_seconds, "runs": self.runs, "epochs": self.epochs}


_trainer: Trainer
_params: Params
_tested: dict[FineTunePlan, float] = {}


def start_worker(params: Params, prepared: Path) -> None:
    """Build the network that all searches of this process train."""
    global _trainer, _params
    torch.set_num_threads(1)
    keep_freed_memory()
    compute = resolve_compute(params.runtime, params.model.backbone)
    _params = params
    _trainer = Trainer(prepared, params.model.backbone, params.model.weights, compute, CACHE_BYTES)


@dataclass(frozen=True)
class Search:
    """A search that was run, with what it cost."""

    result: loop.SearchResult
    runs: TimedRuns
    needed: dict[int, float]
    row: dict[str, Any]


def run_seed(seed: int) -> list[dict[str, Any]]:
    """The same search in both modes, and afterwards what each is worth."""
    modes = list(MODES) if seed % 2 == 0 else list(reversed(MODES))
    searches = [run_search(seed, mode) for mode in modes]
    complete = {task: curve for search in searches for task, curve in search.runs.complete.items()}
    return [
        {
            **search.row,
            "test": tested(search.result.winner.plan),
            "test of best recipe": tested(search.result.best_recipe.plan),
            **stopped_elites(search.result, search.needed, complete),
        }
        for search in searches
    ]


def run_search(seed: int, mode: str) -> Search:
    """One search."""
    section = _params.search.model_copy(update={"seed": seed, "racing": MODES[mode]})
    runs = TimedRuns(_trainer)
    needed: dict[int, float] = {}

    def note_race(*arguments: Any) -> Race | FullTraining:
        race = start_race(*arguments)
        needed.update(race.needed if isinstance(race, Race) else {})
        return race

    begin = time.perf_counter()
    blocks = list(_trainer.backbone.blocks)
    optimizer = loop.new_search(section, blocks)
    with mock.patch.object(loop, "start_race", note_race):
        evaluated = list(loop.evolve(optimizer, section, runs))
    evolution = runs.spent()
    confirmed = list(confirm(contenders(optimizer, section, blocks), section, runs))
    result = loop.search_result(evaluated, confirmed)
    row = {
        "seed": seed,
        "mode": mode,
        **runs.spent(),
        **{f"evolution {name}": value for name, value in evolution.items()},
        "seconds": time.perf_counter() - begin,
        "winner": result.winner.name,
        "plan": str(result.winner.plan),
        "confirmed": 1 - result.winner.evaluation.fitness,
    }
    return Search(result, runs, needed, row)


def tested(plan: FineTunePlan) -> float:
    """A plan's held-out accuracy, measured once in each process."""
    if plan not in _tested:
        settings = training_settings(_params.search)
        _tested[plan] = held_out_accuracy(plan, _trainer, settings)
    return _tested[plan]


def stopped_elites(
    result: loop.SearchResult,
    needed: dict[int, float],
    complete: dict[TrainingTask, LearningCurve],
) -> dict[str, int]:
    """How many candidates were stopped, and how many of those would have become an elite; and how
    many did, of all that had an elite to beat.

    Args:
        result: a search's result.
        needed: candidate id → fitness that it had to beat; none for the first generation, where
            the elites were still to be found.
        complete: whole runs, which need no training; what is missing is added.
    """
    stopped = [evaluated for evaluated in result.evaluated if _outcome(evaluated) == "stopped"]
    wrongly = 0
    for evaluated in stopped:
        curves = []
        for seed in _params.search.training_seeds:
            settings = training_settings(_params.search)
            task = TrainingTask(evaluated.candidate.plan, seed, settings)
            if task not in complete:
                complete[task] = _trainer.train(task).curve
            curves.append(complete[task])
        to_beat = needed.get(evaluated.candidate.id, _first_elites(result))
        wrongly += evaluate(curves).fitness < to_beat
    finished = [c.candidate for c in result.evaluated if c.candidate.finished]
    return {
        "candidates": len(result.evaluated),
        "stopped": len(stopped),
        "stopped elites": wrongly,
        "later elites": sum(c.fitness < needed.get(c.id, 0.0) for c in finished),
    }


def _first_elites(result: loop.SearchResult) -> float:
    """Fitness of the worst elite of the first generation."""
    first = [c.candidate for c in result.evaluated if c.candidate.generation == 0]
    return sorted(c.fitness for c in first if c.finished)[_params.search.elites - 1]


def _outcome(evaluated: loop.EvaluatedCandidate) -> str:
    return evaluated.candidate.evaluation.outcome if evaluated.candidate.evaluation else "finished"


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Racing against full fidelity, paired by search seed."""
    by_mode = {
        mode: sorted((row for row in rows if row["mode"] == mode), key=lambda row: row["seed"])
        for mode in MODES
    }
    full, racing = by_mode["full"], by_mode["racing"]
    differences = np.array([r["test"] - f["test"] for f, r in zip(full, racing, strict=True)])
    half = 0.0
    if len(differences) > 1:
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        half = float(stats.t.ppf(0.975, len(differences) - 1) * error)
    mean = float(differences.mean())
    costs = ("cpu seconds", "evolution cpu seconds", "runs", "epochs", "seconds")
    return {
        "seeds": len(full),
        "times fewer": {
            cost: sum(row[cost] for row in full) / sum(row[cost] for row in racing)
            for cost in costs
        },
        "difference in test accuracy, points": 100 * mean,
        "95 % interval, points": [100 * (mean - half), 100 * (mean + half)],
        "candidates": sum(row["candidates"] for row in racing),
        "stopped": sum(row["stopped"] for row in racing),
        "stopped that would have become an elite": sum(row["stopped elites"] for row in racing),
        "elites of later generations": sum(row["later elites"] for row in racing),
    }


def print_tables(rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    shown = [
        "seed", "mode", "cpu seconds", "evolution cpu seconds", "runs", "epochs", "stopped",
        "stopped elites", "winner", "confirmed", "test", "test of best recipe",
    ]  # fmt: skip
    cells = [
        [f"{row[n]:.{1 if 'cpu' in n else 4}f}" if isinstance(row[n], float) else str(row[n])
         for n in shown]
        for row in sorted(rows, key=lambda row: (row["seed"], row["mode"]))
    ]  # fmt: skip
    low, high = summary["95 % interval, points"]
    figures = [
        *(
            (f"times fewer {name}", f"{ratio:.2f}")
            for name, ratio in summary["times fewer"].items()
        ),
        (
            f"test accuracy, paired difference over {summary['seeds']} search seeds",
            f"{summary['difference in test accuracy, points']:+.2f} points, "
            f"95 % interval {low:+.2f} to {high:+.2f}",
        ),
        ("candidates stopped", f"{summary['stopped']} of {summary['candidates']}"),
        (
            "of them, that would have become an elite",
            str(summary["stopped that would have become an elite"]),
        ),
        ("candidates that did become one", str(summary["elites of later generations"])),
    ]
    click.echo(f"Machine: {one_line(describe_machine())}\n\n{markdown_table(shown, cells)}\n")
    click.echo(markdown_table(["racing against full fidelity", ""], figures))


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--seeds", default=8, show_default=True, type=click.IntRange(1), help="Search seeds.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1))
@click.option("--image-size", default=32, show_default=True, type=click.IntRange(16))
@click.option("--work", type=click.Path(path_type=Path), default=Path(".biotune/search_benchmark"))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(
    params_file: Path,
    seeds: int,
    workers: int,
    image_size: int,
    work: Path,
    json_file: Path | None,
) -> None:
    """Compare searches with and without racing on digits, three training seeds each.

    Population 6, generations 3, elites 2; all else as the params file says. It takes hours: seeds
    that the JSON file holds already are not run again, so a run that was stopped goes on. With
    other params, or another version of BioTune, name another file.

    \b
    Examples:
      python benchmarks/search.py
      python benchmarks/search.py --seeds 2 --json search.json
    """
    params = load_params(params_file)
    small = {"population": 6, "generations": 3, "elites": 2, "training_seeds": [0, 1, 2]}
    params = params.model_copy(update={"search": params.search.model_copy(update=small)})
    prepared = work / f"digits{image_size}"
    if not prepared.exists():
        work.mkdir(parents=True, exist_ok=True)
        prepare_digits(prepared, image_size, 300)
    rows: list[dict[str, Any]] = []
    if json_file is not None and json_file.exists():
        stored = json.loads(json_file.read_text())["searches"]
        rows = [row for row in stored if row["seed"] < seeds]
    missing = sorted(set(range(seeds)) - {row["seed"] for row in rows})
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=start_worker, initargs=(params, prepared)
    ) as pool:
        waiting = [pool.submit(run_seed, seed) for seed in missing]
        for future in tqdm(as_completed(waiting), total=len(missing), unit="seed"):
            rows += future.result()
            if json_file is not None:
                json_file.write_text(json.dumps({"searches": rows}, indent=1) + "\n")
    summary = summarise(rows)
    print_tables(rows, summary)
    if json_file is not None:
        json_file.write_text(json.dumps({"summary": summary, "searches": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
