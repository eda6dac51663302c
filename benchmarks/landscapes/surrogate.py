"""What plans come to on average, learned from a recording by a forest: score, Brier score and test
score, and what they cost.

A command prints how well plans are predicted that the forest did not learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from scipy import stats
from sklearn.model_selection import KFold

from benchmarks.landscapes.forest import Array, Forest, log_rates
from benchmarks.landscapes.recording import RecordedRun, read_recording
from benchmarks.reporting import markdown_table
from biotune.finetuning.training import TrainingSettings
from biotune.plan import FineTunePlan

LEAST_R2, LEAST_RHO = 0.7, 0.8
"""What the validation score of the best epoch of held-out plans must be predicted with."""

_EDGE = 0.01


def log_odds(score: Array) -> Array:
    """Of a score in [0, 1]; finite at both ends. Here noise of good and bad plans compares."""
    odds: Array = np.log((score + _EDGE) / (1 - score + _EDGE))
    return odds


def score_of(odds: Array) -> Array:
    """The score with these :func:`log_odds`."""
    share: Array = 1 / (1 + np.exp(-odds))
    return np.clip(share * (1 + 2 * _EDGE) - _EDGE, 0, 1)


@dataclass(frozen=True)
class Recorded:
    """The runs of one recording, by plan.

    Attributes:
        blocks: of the network in forward order.
        settings: of every run; its patience is the number of epochs.
        runs: plan → its runs, those on the images as prepared first, by seed, then by division.
        file: name of the recording, for messages.
    """

    blocks: tuple[str, ...]
    settings: TrainingSettings
    runs: dict[FineTunePlan, list[RecordedRun]]
    file: str

    @classmethod
    def read(cls, file: Path) -> Recorded:
        """A recording all of whose runs finished, on one schedule.

        Raises:
            ValueError: for any other.
        """
        runs: dict[FineTunePlan, list[RecordedRun]] = {}
        for recorded in read_recording(file):
            if recorded.curve.outcome != "finished":
                raise ValueError(
                    f"{file} has a run that {recorded.curve.outcome}, and landscapes are made of "
                    f"finished ones: remove it ({recorded.run.task.plan})"
                )
            runs.setdefault(recorded.run.task.plan, []).append(recorded)
        schedules = {run.run.task.settings for group in runs.values() for run in group}
        if len(schedules) != 1:
            raise ValueError(f"{file} must hold runs of one schedule, got {len(schedules)}")
        for group in runs.values():
            group.sort(key=lambda run: (_division(run), run.run.task.seed))
        return cls(tuple(next(iter(runs))), schedules.pop(), runs, file.name)

    def means(self) -> tuple[Array, Array]:
        """Of each plan, over its seeds on the images as prepared: log odds of the validation score
        and logarithm of the Brier score of each epoch, then log odds of the test score, [plans, 2
        epochs + 1]; and the number of its seeds, [plans]."""
        rows, counts = [], []
        for group in self.runs.values():
            seeds = [run for run in group if _division(run) == 0]
            scores = log_odds(np.array([run.curve.validation_score for run in seeds]))
            briers = np.log(np.array([run.curve.validation_brier for run in seeds]) + 1e-3)
            tests = log_odds(np.array([[run.test_score or 0.0] for run in seeds]))
            rows.append(np.concatenate([scores, briers, tests], axis=1).mean(axis=0))
            counts.append(len(seeds))
        return np.array(rows), np.array(counts, dtype=np.float64)

    def seconds(self) -> Array:
        """CPU seconds of each plan's runs, the median of all its runs, [plans]."""
        groups = self.runs.values()
        return np.array([np.median([run.curve.seconds for run in group]) for group in groups])


@dataclass(frozen=True)
class Prediction:
    """What is expected of plans.

    Attributes:
        odds: log odds of the validation score, [plans, epochs].
        brier: validation Brier score, [plans, epochs].
        test: score on the test images, of the best epoch, [plans].
        seconds: CPU seconds of all epochs, [plans].
    """

    odds: Array
    brier: Array
    test: Array
    seconds: Array


@dataclass(frozen=True)
class Surrogate:
    """The mean of every plan.

    A plan's validation and test score differ, beside what all plans' do, by the luck of its runs
    and of one division of the images. Whether anything of that stays on other divisions cannot be
    told from what is recorded (see :func:`gap_that_stays`). Left in the mean, it would be in every
    simulated division: the best plan by validation would be 2.5 test points below the best on
    flowers, however well it is searched. So a plan's curve is moved to end where plans of its test
    score do, and what divisions differ by is left to :mod:`benchmarks.landscapes.noise`.

    Attributes:
        quality: predicts what :meth:`Recorded.means` holds.
        ends: coefficients of the polynomial from log odds of the test score to the best of the
            validation score's, the highest degree first.
        cost: predicts the logarithm of CPU seconds.
        epochs: of the schedule.
    """

    quality: Forest
    ends: Array
    cost: Forest
    epochs: int

    @classmethod
    def fit(cls, recorded: Recorded, chosen: Sequence[int] | None = None) -> Surrogate:
        """Learn from the plans at these places of the recording, by default from all."""
        places = np.arange(len(recorded.runs)) if chosen is None else np.asarray(chosen)
        plans = [list(recorded.runs)[place] for place in places]
        means, seeds = recorded.means()
        seconds = np.log(recorded.seconds())[:, None]
        # Five seeds say more than one, but a plan's own deviation from what is smooth stays.
        weights = 2 * seeds / (1 + seeds)
        epochs = recorded.settings.epochs
        learned = means[places]
        return cls(
            quality=Forest.fit(plans, learned, weights[places]),
            ends=np.polyfit(learned[:, -1], learned[:, :epochs].max(axis=1), 2),
            cost=Forest.fit(plans, seconds[places], np.ones(len(plans))),
            epochs=epochs,
        )

    def predict(self, plans: Sequence[FineTunePlan]) -> Prediction:
        """What is expected of these plans."""
        return self.predict_rates(np.stack([log_rates(plan) for plan in plans]))

    def predict_rates(self, rates: Array) -> Prediction:
        """What is expected of log10 rates, [plans, B], NaN where frozen."""
        quality = self.quality.predict(rates)
        odds = quality[:, : self.epochs]
        moved = np.polyval(self.ends, quality[:, -1]) - odds.max(axis=1)
        return Prediction(
            odds=odds + moved[:, None],
            brier=np.exp(quality[:, self.epochs : -1]) - 1e-3,
            test=score_of(quality[:, -1]),
            seconds=np.exp(self.cost.predict(rates)[:, 0]),
        )


def _division(run: RecordedRun) -> int:
    """0 for the images as prepared."""
    return run.run.task.division.resampled or 0


def cross_validated(recorded: Recorded, folds: int = 10) -> dict[str, tuple[float, float]]:
    """R² and Spearman's ρ of plans that were not learned from: of the validation score (of the
    best epoch), the test score, and the CPU seconds."""
    plans = list(recorded.runs)
    shape = len(plans)
    predicted = {name: np.zeros(shape) for name in ("validation", "test", "seconds")}
    for learned, left_out in KFold(folds, shuffle=True, random_state=0).split(plans):
        surrogate = Surrogate.fit(recorded, learned)
        prediction = surrogate.predict([plans[place] for place in left_out])
        predicted["validation"][left_out] = score_of(prediction.odds.max(axis=1))
        predicted["test"][left_out] = prediction.test
        predicted["seconds"][left_out] = prediction.seconds
    groups = [[r for r in runs if _division(r) == 0] for runs in recorded.runs.values()]
    actual = {
        "validation": [np.mean([max(r.curve.validation_score) for r in group]) for group in groups],
        "test": [np.mean([r.test_score or 0.0 for r in group]) for group in groups],
        "seconds": recorded.seconds(),
    }
    return {
        name: (_r2(np.asarray(actual[name]), predicted[name]),
               float(stats.spearmanr(actual[name], predicted[name])[0]))
        for name in predicted
    }  # fmt: skip


def gap_that_stays(recordings: Sequence[Recorded]) -> tuple[float, float, int]:
    """How much of a plan's difference between validation and test score on the images as prepared
    is there on other divisions, too: slope, its standard error, and the number of plans.

    In log odds, of plans of a test score above .4, within each recording.
    """
    before, after = [], []
    for recorded in recordings:
        gaps = []
        for runs in recorded.runs.values():
            halves = [[r for r in runs if (_division(r) > 0) == other] for other in (False, True)]
            if halves[1] and np.mean([r.test_score or 0.0 for r in halves[0]]) > 0.4:
                gaps.append([_gap(half) for half in halves])
        centered = np.array(gaps) - np.mean(gaps, axis=0)
        before += centered[:, 0].tolist()
        after += centered[:, 1].tolist()
    x, y = np.array(before), np.array(after)
    slope = float(x @ y / (x @ x))
    freedom = len(x) - len(recordings) - 1
    error = float(np.sqrt(((y - slope * x) ** 2).sum() / freedom / (x @ x)))
    return slope, error, len(x)


def _gap(runs: Sequence[RecordedRun]) -> float:
    best = np.array([max(run.curve.validation_score) for run in runs])
    test = np.array([run.test_score or 0.0 for run in runs])
    return float((log_odds(best) - log_odds(test)).mean())


def _r2(actual: Array, predicted: Array) -> float:
    return 1 - float(((actual - predicted) ** 2).sum() / ((actual - actual.mean()) ** 2).sum())


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
def main(files: tuple[Path, ...]) -> None:
    """Say how well plans of recordings are predicted that were left out, in ten folds.

    \b
    Example:
      python -m benchmarks.landscapes.surrogate benchmarks/landscapes/*.csv
    """
    rows = []
    recordings = [Recorded.read(file) for file in files]
    for file, recorded in zip(files, recordings, strict=True):
        quality = cross_validated(recorded)
        r2, rho = quality["validation"]
        cells = [f"{value:.3f}" for pair in quality.values() for value in pair]
        verdict = "yes" if r2 >= LEAST_R2 and rho >= LEAST_RHO else "MISSED"
        rows.append([file.stem, str(len(recorded.runs)), *cells, verdict])
    columns = ["landscape", "plans"]
    columns += [f"{what} {figure}" for what in quality for figure in ("R²", "ρ")]
    click.echo(markdown_table([*columns, f"R² ≥ {LEAST_R2}, ρ ≥ {LEAST_RHO}"], rows))
    slope, error, plans = gap_that_stays(recordings)
    click.echo(
        "\nOf the difference between validation and test score as prepared, other divisions show "
        f"{slope:.2f} ± {error:.2f} ({plans} plans)"
    )


if __name__ == "__main__":
    main()
