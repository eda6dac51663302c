"""Processes that are killed, stopped or alone no more: nothing that had finished is lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.faults.campaign import FULL, Place, Reference, Row, tracked, whole_campaign
from tests.mlflow_server import all_runs
from tests.outbox import unsent
from tests.tiny import write_tiny_params

Injected = Callable[..., Row]

KILLS = 20 if FULL else 1


@pytest.mark.timeout(1800)
def test_kill_9_at_random_moments_of_a_search(
    place: Place, reference: Reference, injected: Injected
) -> None:
    row = injected("kill -9 of a search at a random moment", KILLS)
    draw = random.Random(0)  # noqa: S311
    kills = completed = 0
    while kills < KILLS:
        before = place.known()
        run = place.search()
        # After any of its runs and before the next: a kill before the first is a kill of nothing.
        last = before + draw.randrange(1, max(2, reference.known - before))
        while before < last and run.process.poll() is None:
            before = max(before, place.known())
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        before = max(before, place.known())
        if run.process.poll() is None:
            run.kill()
            run.wait()
            kills += 1
            row.lost += max(0, before - place.known())
            with sqlite3.connect(place.home / "evaluations.sqlite") as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        else:  # it came to its end before: compare, and begin anew
            assert run.process.returncode == 0, run.output
            assert place.results() == reference.results
            completed += 1
            for file in place.home.glob("evaluations.sqlite*"):
                file.unlink()
        row.survived = kills
    run = place.search()
    row.survived = 0
    assert run.wait() == 0, run.output
    assert place.results() == reference.results, "byte for byte"
    assert place.known() == reference.known
    assert not list(place.out.glob(".*")), "nothing half-written is left"
    row.survived = kills
    assert row.lost == 0
    _all_closed(place)


def _all_closed(place: Place) -> None:
    place.finish("sync")
    status = {name: status for name, status, *_ in tracked(f"sqlite:///{place.home}/mlflow.db")}
    assert "RUNNING" not in status.values()
    assert not unsent(place.home)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_end_while_mlflows_database_is_made_does_not_break_it(
    place: Place, injected: Injected, number: int
) -> None:
    times = 4 if FULL else 1
    row = injected(f"{signal.Signals(number).name} while MLflow's database is made", times)
    for moment in range(times):
        # Each time with a home of its own: a database that is half made is there from the last.
        fresh = Place(place.folder, place.home / str(moment))
        run = fresh.search()
        while not list(fresh.home.glob("**/mlflow.db")):
            assert run.process.poll() is None, run.output
            time.sleep(0.01)
        time.sleep(0.4 * moment)
        run.kill(number)
        run.wait()
        _all_closed(fresh)
        names = [name for name, *_ in tracked(f"sqlite:///{fresh.home}/mlflow.db")]
        assert names.count("search") == 1
        row.survived += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "Interrupted"),
        pytest.param(
            signal.SIGTERM,
            143,
            "Terminated",
            marks=pytest.mark.skipif(not FULL, reason="in the whole campaign: make faults"),
        ),
    ],
)
def test_a_signal_stops_it_within_seconds_and_it_goes_on(
    place: Place, reference: Reference, injected: Injected, number: int, code: int, word: str
) -> None:
    row = injected(f"{signal.Signals(number).name} in the middle of a search")
    run = place.search()
    place.wait_for(3, run)
    workers = run.workers()
    assert workers
    begun = time.monotonic()
    os.killpg(run.process.pid, number)  # as Ctrl-C in a terminal does
    assert run.wait() == code, run.output
    assert time.monotonic() - begun < 20, "PATIENCE allows five seconds, the machine may be busy"
    assert f"{word}. What had finished is kept: run the same command again" in run.output
    assert "Traceback" not in run.output
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "a worker is left"
    stored = place.known()
    run = place.search()
    assert run.wait() == 0, run.output
    assert place.results() == reference.results
    row.lost = max(0, 3 - stored)
    place.finish("sync")  # on a busy machine five seconds are not enough to make a database in
    status = [s for name, s, *_ in tracked(f"sqlite:///{place.home}/mlflow.db") if name == "search"]
    assert sorted(status) == ["FINISHED", "KILLED"]
    row.survived = 1


@pytest.mark.slow
def test_a_termination_of_prepare_leaves_nothing_and_says_so(
    place: Place, injected: Injected, tmp_path: Path
) -> None:
    row = injected("SIGTERM in the middle of prepare")
    wanted = {"prepare__train_images": None, "prepare__validation_images": None}
    params = write_tiny_params(tmp_path / "big.yaml", prepare__image_size=320, **wanted)
    out = tmp_path / "prepared"
    run = place.start("prepare", "--params", str(params), "--out", str(out))
    while not list(tmp_path.glob(".prepared.*.partial/new/images.npy")):
        assert run.process.poll() is None, run.output
        time.sleep(0.01)
    time.sleep(1)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.wait() == 143, run.output
    assert "Terminated. Nothing half-written is left: run the same command again." in run.output
    assert "Traceback" not in run.output
    assert not list(tmp_path.glob("*prepared*"))
    row.survived = 1


@pytest.mark.slow
def test_a_killed_worker_costs_one_attempt_and_changes_nothing(
    place: Place, reference: Reference, injected: Injected
) -> None:
    row = injected("kill -9 of a worker process", 3)
    run = place.search()
    for count in (2, 4, 6):
        place.wait_for(count, run)
        # One that is at work, not waiting for its next run or just starting.
        os.kill(max(run.workers(), key=processor_seconds), signal.SIGKILL)
    assert run.wait() == 0, run.output
    assert place.results() == reference.results
    with sqlite3.connect(place.home / "evaluations.sqlite") as database:
        reasons = [reason for (reason,) in database.execute("SELECT reason FROM attempts")]
    # A worker that was killed between two runs has cost nothing; not all three can have been.
    assert 1 <= len(reasons) <= 3
    assert set(reasons) == {"its worker process died (SIGKILL, perhaps for want of memory)"}
    assert run.output.count("Tried again: ") == len(reasons)
    row.survived = 3


def processor_seconds(process: int) -> int:
    """What a process has computed so far, in the kernel's ticks."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # gone meanwhile
        return -1
    return int(fields[11]) + int(fields[12])


@whole_campaign
def test_a_run_that_loses_every_worker_stops_the_search_with_the_reason(
    place: Place, reference: Reference, injected: Injected
) -> None:
    row = injected("kill -9 of every worker, again and again")
    run = place.search()
    place.wait_for(2, run)
    stored = place.known()
    while run.process.poll() is None:
        for worker in run.workers():
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.5)
    assert run.process.returncode == 1
    assert "a training run was lost 3 times" in run.output
    database = f"sqlite:///{place.home / 'mlflow.db'}"
    (lost,) = (entry for entry in all_runs(database) if entry.info.run_name == "search")
    assert lost.info.status == "FAILED"
    assert "a training run was lost 3 times" in lost.data.tags["biotune.reason"]
    assert list((place.home / "mlartifacts").rglob("attempts.csv"))
    row.lost = max(0, stored - place.known())
    run = place.search()
    assert run.wait() == 0, run.output
    assert place.results() == reference.results
    row.survived = 1


@whole_campaign
def test_two_searches_at_once_on_one_home(
    place: Place, reference: Reference, injected: Injected, tmp_path: Path
) -> None:
    row = injected("two searches at once on one home")
    other = Place(place.folder, tmp_path / "other")
    runs = place.search(), other.search(home=place.home)
    for run in runs:
        assert run.wait() == 0, run.output
    assert place.results() == other.results() == reference.results
    assert place.known() == reference.known
    _all_closed(place)
    names = [name for name, *_ in tracked(f"sqlite:///{place.home}/mlflow.db")]
    assert names.count("search") == 2
    assert sum(name.startswith("pipeline") for name in names) == 1
    row.survived = 1


class Stages:
    """All later stages in a place, and what they write."""

    def __init__(self, place: Place, searched: Mapping[str, bytes]) -> None:
        self.place, self.out = place, place.out
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "best_plan.json").write_bytes(searched["best_plan.json"])
        (self.out / "search.json").write_bytes(searched["metrics.json"])

    def words(self, stage: str) -> list[str]:
        """The stage's options, all in ``out``."""
        files = {
            "prepare": {"out": "prepared"},
            "finetune": {
                "best-plan": "best_plan.json",
                "model": "model.safetensors",
                "baseline": "baseline.safetensors",
                "seeds": "seeds",
                "curves": "curves.csv",
                "metrics": "finetune.json",
            },
            "evaluate": {
                "model": "model.safetensors",
                "baseline": "baseline.safetensors",
                "seeds": "seeds",
                "metrics": "evaluate.json",
                "predictions": "predictions.csv",
                "confusion": "confusion.csv",
                "classes": "classes.csv",
            },
            "export": {
                "model": "model.safetensors",
                "evaluation": "evaluate.json",
                "classes": "classes.csv",
                "search-metrics": "search.json",
                "bundle": "deploy",
                "metrics": "export.json",
            },
        }[stage]
        return [word for k, v in files.items() for word in (f"--{k}", str(self.out / v))]

    def written(self) -> dict[str, bytes]:
        """Every file but the commands' own output; hidden ones too."""
        return {
            str(file.relative_to(self.out)): file.read_bytes()
            for file in sorted(self.out.rglob("*"))
            if file.is_file() and file.suffix != ".log"
        }


@whole_campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["prepare", "finetune", "evaluate", "export"])
def test_kill_9_of_another_stage_leaves_nothing_half_written(
    place: Place, reference: Reference, injected: Injected, stage: str, tmp_path: Path
) -> None:
    times = 3
    row = injected(f"kill -9 of {stage} at a random moment", times)
    whole = Stages(Place(place.folder, tmp_path / "whole"), reference.results)
    again = Stages(place, reference.results)
    before = ("prepare",) if stage == "prepare" else ("finetune", "evaluate", "export")
    for earlier in before[: before.index(stage)]:
        whole.place.finish(earlier, *whole.words(earlier))
        again.place.finish(earlier, *again.words(earlier))
    begun = time.monotonic()
    whole.place.finish(stage, *whole.words(stage))
    seconds = time.monotonic() - begun
    expected = whole.written()
    draw = random.Random(stage)  # noqa: S311
    for _ in range(times):
        run = again.place.start(stage, *again.words(stage))
        time.sleep(draw.uniform(0.4, 0.95) * seconds)
        run.kill()
        run.wait()
        for name, content in again.written().items():
            if not Path(name).name.startswith(".") and not name.startswith("."):
                assert content == expected[name], f"{name} is neither whole nor absent"
    again.place.finish(stage, *again.words(stage))
    assert again.written() == expected, "the same files, byte for byte, and none beside them"
    row.survived = times


@pytest.mark.slow
def test_finetune_goes_on_from_its_last_finished_epoch(
    place: Place, reference: Reference, injected: Injected, tmp_path: Path
) -> None:
    row = injected("kill -9 of finetune after some epochs")
    whole = Stages(Place(place.folder, tmp_path / "whole"), reference.results)
    again = Stages(place, reference.results)
    whole.place.finish("finetune", *whole.words("finetune"))
    run = again.place.start("finetune", *again.words("finetune"))
    while not list(place.home.glob("finetune/*.progress")):
        assert run.process.poll() is None, run.output
        time.sleep(0.02)
    run.kill()
    run.wait()
    (kept, *_) = place.home.glob("finetune/*.progress")
    # Were the run done anew, what is put into its progress could not come out again.
    marked = _with_marked_losses(kept)
    again.place.finish("finetune", *again.words("finetune"))
    assert marked in (again.out / "curves.csv").read_text(), (
        "it went on from the epoch that was kept"
    )
    assert not list(place.home.glob("finetune/*")), "and keeps nothing that nobody needs"
    for name in ("model", "baseline"):  # only a loss that is shown was changed, no tensor
        file = f"{name}.safetensors"
        written, expected = (load_file(finetuned.out / file) for finetuned in (again, whole))
        assert written.keys() == expected.keys()
        assert all(written[key].equal(expected[key]) for key in expected)
        assert (again.out / f"{name}.json").read_bytes() == (
            whole.out / f"{name}.json"
        ).read_bytes()
    assert (again.out / "finetune.json").read_bytes() == (whole.out / "finetune.json").read_bytes()
    row.survived = 1


def _with_marked_losses(file: Path) -> str:
    from biotune.finetuning.progress import Progress, ProgressFile

    progress = ProgressFile(file, file.stem)
    saved = progress.read()
    assert saved is not None
    progress.write(
        Progress(saved.tensors, {**saved.notes, "losses": [123.4567, *saved.notes["losses"][1:]]})
    )
    return "123.4567"
