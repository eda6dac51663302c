"""One repetition: all arms on one division of the images, each found, judged and written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.comparison.arms import ARMS, ChargedRuns, Comparison
from benchmarks.comparison.report import FIRST
from benchmarks.comparison.rows import Row, Table
from benchmarks.held_out import TEST_SEEDS, HeldOutScores
from benchmarks.landscapes.recording import plan_text
from benchmarks.trainers import TrainingProcesses
from biotune.finetuning.fitness import TrainingTask
from biotune.plan import FineTunePlan
from pipeline.trials.machine import training_settings
from pipeline.trials.runs import TrainingRuns
from pipeline.trials.store import EvaluationStore


@dataclass(frozen=True)
class Repetition:
    """A set of images, divided and searched by one seed.

    Attributes:
        images: name of the set.
        number: the seed.
        comparison: what the arms have in common; the budget is that of the first arm's row.
        store: of these images, with CPU seconds in its curves.
        open_processes: starts the processes that train, for one arm.
        rows, tested: of all repetitions; see :class:`~benchmarks.comparison.rows.Row`.
        made_by: as of a row.
    """

    images: str
    number: int
    comparison: Comparison
    store: EvaluationStore
    open_processes: Callable[[], AbstractContextManager[TrainingProcesses]]
    rows: Table
    tested: Table
    made_by: Mapping[str, str]

    def run(self) -> Iterator[Row]:
        """Each arm's row as soon as it is on disk; those that were there already, too.

        Raises:
            OutOfTime: when no run may be started any more; what had ended is kept.
        """
        budget = self.comparison.budget
        for arm in ARMS:
            row = self._written(arm) or self._run_arm(arm, budget)
            if arm == FIRST:
                budget = row.found.evolution_seconds
            yield row

    def _written(self, arm: str) -> Row | None:
        key = (self.images, str(self.number), arm)
        rows = [r for r in self.rows.rows if (r["set"], r["repetition"], r["arm"]) == key]
        return Row.from_row(rows[0]) if rows else None

    def _run_arm(self, arm: str, budget: float) -> Row:
        with self.open_processes() as processes:
            runs = ChargedRuns(TrainingRuns(self.store, processes))
            found = ARMS[arm](replace(self.comparison, budget=budget), runs)
            test = self._judged(found.plan, processes)
        row = Row(
            images=self.images,
            repetition=self.number,
            arm=arm,
            found=found,
            test=test,
            made_by=self.made_by,
        )
        self.rows.append(row.to_row())
        return Row.from_row(self.rows.rows[-1])

    def _judged(self, plan: FineTunePlan, processes: TrainingProcesses) -> HeldOutScores:
        """Mean over fresh training seeds; what was tested before is looked up."""
        settings = training_settings(self.comparison.section)
        of_plan = {"set": self.images, "repetition": str(self.number), "plan": plan_text(plan)}

        def scores() -> dict[int, HeldOutScores]:
            return {
                int(row["seed"]): HeldOutScores(*(float(row[n]) for n in HeldOutScores._fields))
                for row in self.tested.rows
                if of_plan.items() <= row.items()
            }

        missing = [seed for seed in TEST_SEEDS if seed not in scores()]
        for task, test in processes.test(TrainingTask(plan, s, settings) for s in missing):
            self.tested.append({**of_plan, "seed": task.seed, **test._asdict()})
        each = scores()
        return HeldOutScores(*np.mean([each[seed] for seed in TEST_SEEDS], axis=0).tolist())
