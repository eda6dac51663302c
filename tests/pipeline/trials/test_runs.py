"""Runs come from the store where it knows them, and from the workers where it doesn't."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import TrainingTask
from pipeline.evolving.racing import cost_rank
from pipeline.trials.jobs import Job, Outcome
from pipeline.trials.runs import Attempt, NextTasks, TrainingRun, TrainingRuns, follow
from pipeline.trials.store import EvaluationStore, shared_inputs
from tests.pipeline.trainings import Trainings, curve, task


class Pool:
    """Trains by giving every task the same curve, the last one first.

    Args:
        outcomes: what comes instead at the first wait.
    """

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes)
        self.waiting: list[Job] = []
        self.trained: list[TrainingTask] = []

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def wait(self) -> list[Outcome]:
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            return outcomes
        self.trained.append(self.waiting.pop().task)
        return [Outcome(self.trained[-1], curve=curve(0.5))]


def asked(runs: TrainingRuns, tasks: Sequence[TrainingTask]) -> list[TrainingRun]:
    for wanted in tasks:
        runs.submit(wanted)
    return [runs.next_finished() for _ in tasks]


def test_only_what_the_store_does_not_know_is_trained_and_then_it_knows(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))
    pool = Pool()
    runs = TrainingRuns(store, pool)
    store.put(task(seed=1), curve(0.7))

    first = {run.task.seed: run for run in asked(runs, [task(seed=0), task(seed=1)])}
    assert pool.trained == [task(seed=0)]
    assert (first[0].from_store, first[0].curve) == (False, curve(0.5))
    assert (first[1].from_store, first[1].curve) == (True, curve(0.7))

    assert [run.from_store for run in asked(runs, [task(seed=0)])] == [True]
    assert pool.trained == [task(seed=0)]


def test_what_had_finished_is_kept_whatever_else_came_at_the_same_moment(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))
    full, later = OSError("disk full at seed 0"), OSError("disk full at seed 3")
    pool = Pool(
        Outcome(task(seed=0), error=full),
        Outcome(task(seed=1), curve=curve(0.7)),
        Outcome(task(seed=2), attempt="killed"),
        Outcome(task(seed=3), error=later),
        Outcome(task(seed=4), curve=curve(0.8)),
    )
    runs = TrainingRuns(store, pool)
    with pytest.raises(OSError, match="at seed 0"):
        runs.next_finished()
    kept = [store.get(task(seed=seed)) for seed in range(5)]
    assert kept == [None, curve(0.7), None, None, curve(0.8)]
    assert runs.attempts == [Attempt(task(seed=2), "killed")]
    with sqlite3.connect(tmp_path / "evaluations.sqlite") as database:
        assert database.execute("SELECT reason FROM attempts").fetchall() == [("killed",)]


def test_a_curve_is_kept_though_its_attempt_cannot_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(EvaluationStore, "add_attempt", full)
    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))
    pool = Pool(
        Outcome(task(seed=0), attempt="out of memory"), Outcome(task(seed=0), curve=curve(0.7))
    )
    with pytest.raises(OSError, match="disk full"):
        TrainingRuns(store, pool).next_finished()
    assert store.get(task(seed=0)) == curve(0.7)


def test_an_outcome_is_one_thing_and_waiting_has_one() -> None:
    with pytest.raises(ValueError, match="one of curve, attempt and error"):
        Outcome(task())
    with pytest.raises(ValueError, match="one of curve, attempt and error"):
        Outcome(task(), curve=curve(0.5), error=OSError())


def test_workers_that_say_nothing_are_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    class Silent(Pool):
        def wait(self) -> list[Outcome]:
            return []

    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))
    with pytest.raises(RuntimeError, match="had nothing to say"):
        TrainingRuns(store, Silent()).next_finished()


def test_jobs_are_trained_whatever_the_store_knows_and_kept_as_well(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, shared_inputs("data", "b", "w", Compute()))
    store.put(task(seed=0), curve(0.7))
    pool = Pool()
    jobs = [Job(task(seed=seed), tmp_path / f"{seed}.safetensors") for seed in range(2)]
    for run in TrainingRuns(store, pool).train(jobs):
        assert run.curve == store.get(run.task) == curve(0.5)  # there before anybody hears of it
    assert pool.trained == [task(seed=1), task(seed=0)]


def one_after_another(*tasks: TrainingTask) -> NextTasks:
    return lambda done: tasks[len(done) : len(done) + 1]


def test_each_is_asked_what_comes_next_and_a_task_of_two_is_run_once() -> None:
    first, second, third = (task(seed=seed) for seed in range(3))
    runs = Trainings(lambda _: curve(0.5))
    wanted = {
        "both": one_after_another(first, second),
        "all at once": lambda done: [] if done else [first, second, third],
        "the same": one_after_another(first, second),
        "nothing": one_after_another(),
    }
    followed = dict(follow(wanted, runs, cost_rank))
    assert {key: [run.task for run in finished] for key, finished in followed.items()} == {
        "both": [first, second],
        "all at once": [first, second, third],
        "the same": [first, second],
        "nothing": [],
    }
    assert sorted(submitted.seed for submitted in runs.asked) == [0, 1, 2]


def test_the_next_task_starts_while_others_still_run_and_the_longest_starts_first() -> None:
    late = task({"stem": None, "middle": None, "top": None, "head": 1.0})
    early = task({"stem": 1.0, "middle": None, "top": None, "head": 1.0})
    more = task({"stem": 1.0, "middle": 1.0, "top": None, "head": 1.0})
    runs = Trainings(lambda _: curve(0.5), order=lambda _: 0)
    again = task(dict(more.plan), seed=1)
    wanted = {"a": one_after_another(late), "b": one_after_another(early)}
    followed = follow({**wanted, "c": one_after_another(more, again)}, runs, cost_rank)
    assert [key for key, _ in followed] == ["b", "a", "c"]
    assert runs.asked == [more, early, late, again]
