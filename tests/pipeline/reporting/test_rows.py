"""Why a candidate has no score of its own, in words that are a function of its runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from biotune.plan import Evaluation
from pipeline.reporting.rows import reason_of
from pipeline.trials.runs import TrainingRun
from tests.pipeline.trainings import curve, task


@pytest.mark.parametrize(
    ("outcomes", "outcome", "expected"),
    [
        (["finished", "finished"], "finished", None),
        (["finished", "diverged"], "diverged", "seed 1: the loss of epoch 3 was no number"),
        (["infeasible"], "infeasible", "seed 0: out of memory, also with empty caches"),
        (["finished", "stopped"], "stopped", "seed 1: hopeless after 2 epochs"),
        (["finished"], "stopped", "hopeless after 1 of its seeds"),
    ],
)
def test_a_reason_names_the_seed_and_what_happened(outcomes, outcome, expected) -> None:
    runs = [
        TrainingRun(task(seed=seed), replace(curve(0.5), outcome=ending), from_store=False)
        for seed, ending in enumerate(outcomes)
    ]
    assert reason_of(runs, Evaluation(1.0, outcome=outcome)) == expected
