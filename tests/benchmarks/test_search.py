"""Whole searches at equal cost: budgets, a killed benchmark, and the report's figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.comparison.arms import (
    ARMS,
    FIRST_REPEAT,
    REPEATED,
    ChargedRuns,
    Comparison,
    Found,
)
from benchmarks.comparison.repetition import Repetition
from benchmarks.comparison.report import Difference, difference, report
from benchmarks.comparison.rows import COLUMNS, MADE_BY, TESTED, Row, Table
from benchmarks.held_out import TEST_SEEDS, HeldOutScores
from benchmarks.search import main
from benchmarks.trainers import OutOfTime, TrainingProcesses
from biotune.evolution import FineTunePlan, decode, recipe_grid
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from pipeline.params import SearchParams
from pipeline.trials.machine import training_settings
from pipeline.trials.store import EvaluationStore
from tests.pipeline.trainings import Trainings
from tests.tiny import write_pictures, write_tiny_params

BLOCKS = ("stem", *(f"blocks.{i}" for i in range(7)), "conv_head", "classifier")
SECTION = SearchParams(seed=3)
SETTINGS = training_settings(SECTION)
BEST_RATES = (0, 0, 0, 2.0, 3.0, 5.0, 0, 0, 8.0, 2.0)
EPOCH_SECONDS = 1.5


def random_of(task: TrainingTask) -> np.random.Generator:
    described = repr((task.plan, task.seed, task.division)).encode()
    return np.random.default_rng(list(hashlib.sha256(described).digest()))


def trained(task: TrainingTask) -> LearningCurve:
    """The better, the nearer the plan is to :data:`BEST_RATES`, and with luck; as far as its
    thresholds let it go."""
    rates = zip(task.plan.values(), BEST_RATES, strict=True)
    far = np.mean([abs(np.log10((rate or 0.1) / (best or 0.1))) for rate, best in rates])
    end = 0.9 - 0.3 * far + 0.02 * random_of(task).normal()
    scores = tuple(float(end * (1 - 0.5**epoch)) for epoch in range(1, task.settings.epochs + 1))
    whole = LearningCurve(
        train_loss=scores,
        validation_score=scores,
        validation_brier=tuple(1 - score for score in scores),
        trained_parameters=len(task.plan.trained_blocks),
        outcome="finished",
        seconds=EPOCH_SECONDS * len(scores),
    )
    return whole.raced(task.must_reach)


def scored(task: TrainingTask) -> HeldOutScores:
    score = max(trained(task).validation_score)
    return HeldOutScores(score, score + 0.01)


def run_arm(arm: str, budget: float) -> tuple[Found, list[TrainingTask]]:
    """An arm on its own, and all tasks that it asked for."""
    trainings = Trainings(trained)
    found = ARMS[arm](Comparison(SECTION, BLOCKS, budget), ChargedRuns(trainings))
    return found, trainings.asked


@pytest.mark.parametrize("budget", [300.0, 500.0])
def test_todays_search_breeds_until_its_seconds_are_spent(budget: float) -> None:
    found, tasks = run_arm("today", budget)
    a_batch = 4 * 8 * EPOCH_SECONDS
    assert budget <= found.evolution_seconds < budget + a_batch
    searched = {task for task in tasks if task.division.resampled is None}
    epochs = sum(len(trained(task).validation_score) for task in searched)
    assert found.evolution_seconds == pytest.approx(EPOCH_SECONDS * epochs)
    assert any(trained(task).outcome == "stopped" for task in searched)
    confirmed = {task for task in tasks if task.division.resampled is not None}
    assert found.confirmation_seconds == pytest.approx(8 * EPOCH_SECONDS * len(confirmed))
    assert found.candidates > 10 + 6


def test_generation_0_spends_what_breeding_took_on_further_seeds_of_its_best() -> None:
    founders, first = run_arm("generation 0", 0.0)
    searched = {task for task in first if task.division.resampled is None}
    lengths = {task: len(trained(task).validation_score) for task in searched}
    assert len(lengths) == 16
    assert {lengths[task] for task in searched if not any(task.must_reach)} == {8}
    assert any(length < 8 for length in lengths.values())  # stopped, held against the scan
    assert founders.evolution_seconds == EPOCH_SECONDS * sum(lengths.values())
    budget = founders.evolution_seconds + 15.5 * 8 * EPOCH_SECONDS
    found, tasks = run_arm("generation 0", budget)
    repeated = [task for task in tasks if task.seed >= FIRST_REPEAT]
    assert len(repeated) == 16
    assert found.evolution_seconds == founders.evolution_seconds + 16 * 8 * EPOCH_SECONDS
    assert len(set(repeated)) == len(repeated)
    single = {task.plan: max(trained(task).validation_score) for task in tasks if task.seed == 0}
    best = sorted(single, key=lambda plan: single[plan], reverse=True)[:REPEATED]
    assert {task.plan for task in repeated[:REPEATED]} == set(best)
    assert found.generation == 0
    assert found.candidates == 16


def test_the_whole_grid_is_tried_and_its_best_three_confirmed() -> None:
    found, tasks = run_arm("best recipe", 1.0)
    grid = [decode(recipe.genome, BLOCKS) for recipe in recipe_grid(BLOCKS)]
    tried = {task.plan: trained(task) for task in tasks if task.division.resampled is None}
    assert set(tried) == set(grid)
    confirmed = [task for task in tasks if task.division.resampled is not None]
    best = sorted(grid, key=lambda plan: -max(tried[plan].validation_score))[:3]
    assert {task.plan for task in confirmed} == set(best)
    means = {
        plan: np.mean([max(trained(t).validation_score) for t in confirmed if t.plan == plan])
        for plan in best
    }
    assert found.plan == max(means, key=lambda plan: means[plan])
    assert found.confirmed == found.recipe_confirmed == pytest.approx(means[found.plan])
    assert found.origin.startswith("recipe:")
    assert found.evolution_seconds == pytest.approx(len(grid) * 8 * EPOCH_SECONDS)
    assert found.confirmation_seconds == pytest.approx(15 * 8 * EPOCH_SECONDS)


def test_what_is_answered_twice_costs_once_unless_it_went_further() -> None:
    runs = ChargedRuns(Trainings(trained))
    plan = FineTunePlan(dict.fromkeys(BLOCKS, 1.0))
    whole = TrainingTask(plan, 0, replace(SETTINGS, epochs=4))
    for task, seconds in (
        (replace(whole, must_reach=(0.0, 1.0)), 2 * EPOCH_SECONDS),
        (replace(whole, must_reach=(0.0, 1.0)), 2 * EPOCH_SECONDS),
        (whole, 6 * EPOCH_SECONDS),
        (replace(whole, must_reach=(0.0, 0.9)), 6 * EPOCH_SECONDS),
    ):
        runs.submit(task)
        runs.next_finished()
        assert runs.seconds == pytest.approx(seconds)


class Killed(Exception):  # noqa: N818
    pass


def killed_after(runs: int) -> Callable[[TrainingTask], LearningCurve]:
    left = iter(range(runs))

    def train(task: TrainingTask) -> LearningCurve:
        if next(left, None) is None:
            raise Killed
        return trained(task)

    return train


def noted_in(tasks: list[TrainingTask]) -> Callable[[TrainingTask], LearningCurve]:
    def train(task: TrainingTask) -> LearningCurve:
        tasks.append(task)
        return trained(task)

    return train


def compare(
    folder: Path,
    train: Callable[[TrainingTask], LearningCurve] = trained,
    may_start: Callable[[], bool] = lambda: True,
) -> Iterator[Row]:
    """A repetition in a work folder, trained by two threads."""
    folder.mkdir(exist_ok=True)

    def open_processes() -> TrainingProcesses:
        return TrainingProcesses(ThreadPoolExecutor(2), 2, may_start, train=train, tested=scored)

    with closing(EvaluationStore(folder, {})) as store:
        yield from Repetition(
            images="digits",
            number=3,
            comparison=Comparison(SECTION, BLOCKS),
            store=store,
            open_processes=open_processes,
            rows=Table(folder / "rows.csv", COLUMNS),
            tested=Table(folder / "tested.csv", TESTED),
            made_by=dict.fromkeys(MADE_BY, "x"),
        ).run()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    rows = list(compare(folder))
    assert [row.arm for row in rows] == list(ARMS)
    return folder


def test_the_seconds_of_todays_search_and_of_generation_0_are_those_of_screened(
    uninterrupted: Path,
) -> None:
    rows = [Row.from_row(row) for row in Table(uninterrupted / "rows.csv", COLUMNS).rows]
    screened, today, generation_0, _ = (row.found.evolution_seconds for row in rows)
    assert screened <= today < screened + 4 * 8 * EPOCH_SECONDS
    assert screened <= generation_0 < screened + 8 * EPOCH_SECONDS


def test_a_winner_is_judged_by_five_seeds_that_no_search_uses(uninterrupted: Path) -> None:
    for row in (Row.from_row(row) for row in Table(uninterrupted / "rows.csv", COLUMNS).rows):
        each = [scored(TrainingTask(row.found.plan, seed, SETTINGS)) for seed in TEST_SEEDS]
        assert row.test.balanced_accuracy == pytest.approx(
            np.mean([scores.balanced_accuracy for scores in each]), abs=1e-5
        )
        assert row.test.accuracy == pytest.approx(
            np.mean([scores.accuracy for scores in each]), abs=1e-5
        )
    winners = {row["plan"] for row in Table(uninterrupted / "rows.csv", COLUMNS).rows}
    assert len(Table(uninterrupted / "tested.csv", TESTED).rows) == 5 * len(winners)


@pytest.mark.parametrize("runs", [5, 40, 75])
def test_a_killed_comparison_goes_on_to_the_same_rows(
    runs: int, uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        list(compare(tmp_path, killed_after(runs)))
    asked: list[TrainingTask] = []
    list(compare(tmp_path, noted_in(asked)))
    assert (tmp_path / "rows.csv").read_bytes() == (uninterrupted / "rows.csv").read_bytes()
    again: list[TrainingTask] = []
    list(compare(tmp_path / "anew", noted_in(again)))
    assert len(again) - runs <= len(asked) <= len(again) - runs + 2


def test_a_torn_row_is_written_anew(uninterrupted: Path, tmp_path: Path) -> None:
    whole = (uninterrupted / "rows.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "rows.csv").write_bytes(b"".join(lines[:2]) + lines[2][:30])
    (tmp_path / "tested.csv").write_bytes((uninterrupted / "tested.csv").read_bytes()[:-5])
    list(compare(tmp_path))
    assert (tmp_path / "rows.csv").read_bytes() == whole


def test_when_the_time_is_over_no_run_is_started_and_what_ended_is_kept(tmp_path: Path) -> None:
    starts = iter(range(1_000_000))
    with pytest.raises(OutOfTime, match="may no longer be started"):
        list(compare(tmp_path, may_start=lambda: next(starts) < 30))
    asked: list[TrainingTask] = []
    with pytest.raises(OutOfTime):
        list(compare(tmp_path, noted_in(asked), may_start=lambda: False))
    assert asked == []
    with closing(EvaluationStore(tmp_path, {})) as store:
        first = FineTunePlan({block: 5.0 if block == "stem" else None for block in BLOCKS})
        assert store.get(TrainingTask(first, 0, SETTINGS)) is not None


def test_a_table_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv is of another benchmark"):
        Table(tmp_path / "rows.csv", COLUMNS)


def row(images: str, repetition: int, arm: str, score: float, generation: int = 0) -> Row:
    found = Found(
        plan=FineTunePlan({"stem": None, "head": 1.0}),
        origin="offspring" if generation else "recipe:full 1x",
        generation=generation,
        confirmed=0.8,
        recipe_confirmed=0.7,
        candidates=40,
        bred_elites=2 * generation,
        evolution_seconds=100.0 + repetition,
        confirmation_seconds=50.0,
    )
    test = HeldOutScores(score, round(score + 0.1, 2))
    return Row(images, repetition, arm, found, test, dict.fromkeys(MADE_BY, "x"))


ROWS = [
    *(row("digits", r, "screened", s, r) for r, s in enumerate((0.80, 0.82, 0.90))),
    *(row("digits", r, "today", s) for r, s in enumerate((0.79, 0.80, 0.84))),
    row("flowers", 0, "screened", 0.60),
    row("flowers", 0, "today", 0.65),
    row("flowers", 1, "today", 0.10),
]


def test_differences_are_paired_by_set_and_repetition() -> None:
    # .01, .02, .06: mean .03, standard deviation √.0007, t(2) = 4.302653.
    digits = [row for row in ROWS if row.images == "digits"]
    half = 4.302653 * np.sqrt(0.0007) / np.sqrt(3)
    paired = difference(digits, "today", "balanced_accuracy")
    assert paired == Difference(3, pytest.approx(0.03), pytest.approx(half))
    assert str(paired) == "+3.00 (-3.57 to +9.57)"
    # And -.05: mean .01, standard deviation √(.0062 / 3), t(3) = 3.182446.
    half = 3.182446 * np.sqrt(0.0062 / 3) / 2
    pooled = difference(ROWS, "today", "accuracy")
    assert pooled == Difference(4, pytest.approx(0.01), pytest.approx(half))
    assert difference(ROWS, "generation 0", "accuracy") is None
    flowers = [row for row in ROWS if row.images == "flowers"]
    assert str(difference(flowers, "today", "accuracy")) == "-5.00"


def test_the_report_shows_every_row_and_where_the_winners_came_from() -> None:
    text = report(ROWS)
    assert text.count("stem=- head=1") == len(ROWS)
    assert "| digits | less today | 3 | +3.00 (-3.57 to +9.57) | +3.00 (-3.57 to +9.57) |" in text
    assert "| all | less today | 4 | +1.00 (-6.23 to +8.23) | +1.00 (-6.23 to +8.23) |" in text
    assert "| digits | screened | 2 of 3 (67 %) | 101.0 | 50.0 | 40.0 | 2.0 |" in text
    assert "| all | screened | 2 of 4 (50 %) | 100.8 | 50.0 | 40.0 | 1.5 |" in text
    assert "different code" not in text
    other = replace(ROWS[0], made_by={**ROWS[0].made_by, "code": "y"})
    assert "different code (x, y)" in report([other, *ROWS[1:]])


def test_a_row_is_read_as_it_was_written() -> None:
    written = {name: str(value) for name, value in ROWS[1].to_row().items()}
    assert tuple(written) == COLUMNS
    assert Row.from_row(written) == ROWS[1]


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    return done.output if done.exception is None else f"{done.output}{done.exception}"


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    folded = write_tiny_params(tmp_path / "folded.yaml", search__folds=2)
    params = write_tiny_params(tmp_path / "params.yaml")
    work = ("--work", str(tmp_path / "work"), "--params", str(params))
    assert "search.folds: 1" in invoke("--params", str(folded))
    assert "give digits, or NAME=FOLDER" in invoke("--images", "flowers", *work)
    assert "there is no folder" in invoke("--images", f"a={tmp_path / 'nowhere'}", *work)
    assert "at least one must be left for the test" in invoke(
        "--images", f"a={pictures}", "--examples", "80", *work
    )
    assert not (tmp_path / "work" / "rows.csv").exists()


def test_a_work_folder_is_of_one_setting_and_more_images_may_be_added(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    params = write_tiny_params(tmp_path / "params.yaml")
    work = ("--work", str(tmp_path / "work"), "--params", str(params), "--repetitions", "0")
    assert invoke("--images", f"a={pictures}", *work) == ""
    assert invoke("--images", f"b={pictures}", *work) == ""
    assert "(precision, see" in invoke("--images", f"a={pictures}", "--precision", "bf16", *work)
    assert "(a, see" in invoke("--images", f"a={tmp_path}", *work)
    other = write_tiny_params(tmp_path / "other.yaml", search__epochs=3)
    assert "(search, see" in invoke(*work, "--params", str(other))
