"""What was trained once is never trained again, and only what is the same counts as the same."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from biotune.finetuning.compute import Compute
from biotune.finetuning.fitness import TrainingTask
from biotune.finetuning.learning_curve import LearningCurve
from pipeline.errors import PipelineError
from pipeline.trials.store import EvaluationStore, shared_inputs
from pipeline.trials.store_file import checksum
from tests.pipeline.trainings import curve, task

ROOT = Path(__file__).parents[2]
INPUTS = shared_inputs("data", "efficientnet_lite0", "weights", Compute())


def test_a_curve_comes_back_as_it_was_after_the_file_was_closed(tmp_path: Path) -> None:
    kept = curve(0.1 + 0.2, seconds=1 / 3)  # numbers that a careless format would round
    store = EvaluationStore(tmp_path, INPUTS)
    store.put(task(), kept)
    store.close()
    assert EvaluationStore(tmp_path, INPUTS).get(task()) == kept


@pytest.fixture
def store(tmp_path: Path) -> EvaluationStore:
    return EvaluationStore(tmp_path, INPUTS)


def test_an_unknown_task_is_none(tmp_path: Path) -> None:
    assert EvaluationStore(tmp_path, INPUTS).get(task()) is None


@pytest.mark.parametrize(
    "inputs",
    [
        shared_inputs("other", "efficientnet_lite0", "weights", Compute()),
        shared_inputs("data", "resnet50", "weights", Compute()),
        shared_inputs("data", "efficientnet_lite0", "others", Compute()),
        shared_inputs("data", "efficientnet_lite0", "weights", Compute("cuda")),
        shared_inputs("data", "efficientnet_lite0", "weights", Compute("cpu", "bf16")),
        shared_inputs("data", "efficientnet_lite0", "weights", Compute(compile=True)),
        {**INPUTS, "code": "another"},
        {**INPUTS, "numpy": "1.0"},
        {**INPUTS, "timm": "1.0"},
        {**INPUTS, "torch": "1.0"},
    ],
)
def test_whatever_all_runs_share_is_in_the_key_too(
    tmp_path: Path, inputs: dict[str, object]
) -> None:
    EvaluationStore(tmp_path, INPUTS).put(task(), curve(0.5))
    assert EvaluationStore(tmp_path, inputs).get(task()) is None


def test_which_gpu_it_was_is_not_in_the_key() -> None:
    first = shared_inputs("data", "b", "w", Compute("cuda:0"))
    assert first == shared_inputs("data", "b", "w", Compute("cuda:1"))


def test_a_diverged_run_is_kept_and_one_without_memory_is_not(tmp_path: Path) -> None:
    store = EvaluationStore(tmp_path, INPUTS)
    diverged = LearningCurve((), (), (), 10, "diverged", 0.1)
    store.put(task(), diverged)
    store.put(task(seed=1), replace(diverged, outcome="infeasible"))
    assert store.get(task()) == diverged
    assert store.get(task(seed=1)) is None


def test_what_was_put_survives_a_process_that_is_killed_right_after(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from tests.pipeline.trainings import curve, task
from tests.pipeline.trials.test_store import INPUTS
from pipeline.trials.store import EvaluationStore
EvaluationStore(Path({str(tmp_path)!r}), INPUTS).put(task(), curve(0.5))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert killed.returncode == -9, killed.stderr
    assert EvaluationStore(tmp_path, INPUTS).get(task()) == curve(0.5)


def stopped(*accuracies: float) -> LearningCurve:
    return LearningCurve(
        (1.0,) * len(accuracies), accuracies, (0.5,) * len(accuracies), 10, "stopped", 0.5
    )


def raced(*must_reach: float) -> TrainingTask:
    return replace(task(), must_reach=must_reach)


def test_a_whole_run_answers_any_thresholds_as_the_raced_run_would_have(store) -> None:
    store.put(raced(0.1, 0.1), curve(0.8))  # .4 and .8
    assert store.get(task()) == curve(0.8)
    assert store.get(raced(0.3, 0.7)) == curve(0.8)
    short = store.get(raced(0.5))
    assert (short.outcome, short.validation_score) == ("stopped", (0.4,))


def test_a_stopped_run_answers_only_thresholds_that_stop_it_as_well(store) -> None:
    store.put(raced(0.0, 0.6), stopped(0.3, 0.5))
    assert store.get(task()) is None
    assert store.get(raced(0.0, 0.4)) is None
    assert store.get(raced(0.0, 0.55)) == stopped(0.3, 0.5)
    earlier = store.get(raced(0.4, 0.0))
    assert (earlier.outcome, earlier.validation_score) == ("stopped", (0.3,))


def test_a_shorter_run_never_takes_the_place_of_a_longer(store) -> None:
    store.put(task(), stopped(0.3, 0.5))
    store.put(task(), stopped(0.3))
    assert store.get(raced(0.0, 0.6)) == stopped(0.3, 0.5)
    store.put(task(), stopped(0.3, 0.5, 0.6))
    assert store.get(raced(0.0, 0.0, 0.7)) == stopped(0.3, 0.5, 0.6)
    store.put(task(), curve(0.8))
    store.put(task(), stopped(0.3, 0.5, 0.6))
    assert store.get(task()) == curve(0.8)


def damage(tmp_path: Path, sql: str, *values: object) -> None:
    with sqlite3.connect(tmp_path / "evaluations.sqlite") as database:
        assert database.execute(sql, values).rowcount == 1


@pytest.mark.parametrize("content", [b"{}", b"\xff\xfe", b""])
def test_a_damaged_entry_is_said_and_not_known_until_it_is_trained_again(
    tmp_path: Path, store: EvaluationStore, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    store.put(task(), curve(0.5))
    store.put(task(seed=1), curve(0.6))
    damage(tmp_path, "UPDATE curves SET curve = ? WHERE key = ?", content, store.key(task()))
    assert store.get(task()) is None
    assert "an entry is damaged (its checksum differs): it is trained again" in caplog.text
    assert store.get(task(seed=1)) == curve(0.6)
    store.put(task(), curve(0.5))
    assert store.get(task()) == curve(0.5)


def test_an_entry_in_anothers_place_is_damaged_too(tmp_path: Path, store: EvaluationStore) -> None:
    store.put(task(), curve(0.5))
    damage(tmp_path, "UPDATE curves SET key = ?", store.key(task(seed=1)))
    assert store.get(task(seed=1)) is None


def test_what_is_no_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "evaluations.sqlite").mkdir()
    with pytest.raises(PipelineError, match=r"evaluations\.sqlite cannot be used"):
        EvaluationStore(tmp_path, INPUTS)


ENTRIES = 30


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A closed store's file."""
    store = EvaluationStore(tmp_path, INPUTS)
    for seed in range(ENTRIES):
        store.put(task(seed=seed), curve(seed / 100))
    store.add_attempt(task(), "its worker process died")
    store.close()
    return tmp_path / "evaluations.sqlite"


def known_of(home: Path) -> int:
    """How many entries a store gives back, none of them wrong."""
    store = EvaluationStore(home, INPUTS)
    curves = [store.get(task(seed=seed)) for seed in range(ENTRIES)]
    assert all(kept in (None, curve(seed / 100)) for seed, kept in enumerate(curves))
    store.close()
    return sum(kept is not None for kept in curves)


def flip(file: Path, place: int, bit: int = 2) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def test_wherever_a_bit_flips_what_is_lost_is_said_and_the_store_goes_on(
    filled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, draw, outcomes = filled.read_bytes(), random.Random(0), Counter[str]()  # noqa: S311
    places = [0, 16, 18, 19, 21, 45, 60, *(draw.randrange(len(whole)) for _ in range(40))]
    for place in places:
        filled.write_bytes(whole)
        flip(filled, place, draw.randrange(8))
        caplog.clear()
        count = known_of(filled.parent)
        assert count == ENTRIES or "damaged" in caplog.text, f"silent at {place}"
        outcomes["lost" if count < ENTRIES else "mended" if caplog.text else "fine"] += 1
        store = EvaluationStore(filled.parent, INPUTS)
        for seed in range(ENTRIES):
            if store.get(task(seed=seed)) is None:
                store.put(task(seed=seed), curve(seed / 100))
        assert None not in [store.get(task(seed=seed)) for seed in range(ENTRIES)]
        store.close()
    assert len(outcomes) == 3, outcomes


def test_a_damaged_index_costs_no_entry_and_the_damaged_file_is_kept(
    filled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = EvaluationStore(filled.parent, INPUTS).key(task(seed=5)).encode()
    content = filled.read_bytes()
    assert content.count(key) == 2, "in the table and in its index"
    # In an index there is nothing but keys: they are close together.
    places = [place for place in range(len(content)) if content.startswith(key, place)]
    near = [content[place - 400 : place + 400].count(b'"seed"') for place in places]
    flip(filled, places[near.index(0)])
    damaged = filled.read_bytes()
    assert known_of(filled.parent) == ENTRIES
    assert f"is mended: {ENTRIES} entries could be kept" in caplog.text
    assert (filled.parent / "evaluations.damaged-1.sqlite").read_bytes() == damaged
    with sqlite3.connect(filled) as database:
        assert database.execute("SELECT count(*) FROM attempts").fetchone() == (1,)
    caplog.clear()
    assert known_of(filled.parent) == ENTRIES
    assert not caplog.text, "it is said once"


@pytest.mark.parametrize("content", [b"no database at all, and not for a while" * 100, b"cut off"])
def test_a_file_that_is_no_database_is_kept_aside_and_said(
    filled: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    filled.write_bytes(content)
    assert known_of(filled.parent) == 0
    assert "0 entries could be kept, others are trained again" in caplog.text
    assert (filled.parent / "evaluations.damaged-1.sqlite").read_bytes() == content


def test_a_file_that_was_just_begun_is_no_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "evaluations.sqlite").touch()
    EvaluationStore(tmp_path, INPUTS).close()
    with sqlite3.connect(tmp_path / "only-a-header.sqlite") as database:
        database.execute("PRAGMA journal_mode = WAL")
    database.close()
    (tmp_path / "only-a-header.sqlite").replace(tmp_path / "evaluations.sqlite")
    EvaluationStore(tmp_path, INPUTS).close()
    assert not caplog.text


def test_a_flipped_bit_in_the_log_of_a_killed_search_loses_nothing(
    tmp_path: Path, store: EvaluationStore
) -> None:
    for seed in range(ENTRIES):
        store.put(task(seed=seed), curve(seed / 100))
    logged = len((tmp_path / "evaluations.sqlite-wal").read_bytes())
    for place in range(32, logged, 2500):
        killed = tmp_path / str(place)
        killed.mkdir()
        for file in tmp_path.glob("evaluations.sqlite*"):
            shutil.copyfile(file, killed / file.name)
        flip(killed / "evaluations.sqlite-wal", place)
        assert known_of(killed) == ENTRIES


def test_text_that_is_no_text_is_damage_like_any_other(
    tmp_path: Path, store: EvaluationStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(task(), curve(0.5))
    damage(tmp_path, "UPDATE curves SET checksum = CAST(? AS TEXT)", b"\xff\xfe")
    assert store.get(task()) is None
    assert "its checksum differs" in caplog.text


def test_what_a_newer_biotune_wrote_is_an_error_that_says_so(
    tmp_path: Path, store: EvaluationStore
) -> None:
    store.put(task(), curve(0.5))
    key = store.key(task())
    text = json.dumps({**asdict(curve(0.5)), "watts": 1}).encode()
    damage(
        tmp_path, "UPDATE curves SET curve = ?, checksum = ?", text, checksum(key, text).decode()
    )
    with pytest.raises(PipelineError, match=r"that another BioTune has written \(watts\)"):
        store.get(task())
    store.close()
    with sqlite3.connect(tmp_path / "evaluations.sqlite") as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(PipelineError, match=r"newer BioTune \(format 7, this one knows 1\)"):
        EvaluationStore(tmp_path, INPUTS)


def test_columns_are_named_so_that_more_of_them_are_no_obstacle(
    tmp_path: Path, store: EvaluationStore
) -> None:
    with sqlite3.connect(tmp_path / "evaluations.sqlite") as database:
        database.execute("ALTER TABLE curves ADD COLUMN note TEXT")
    store.put(task(), curve(0.5))
    assert store.get(task()) == curve(0.5)


def test_attempts_are_kept_and_are_no_scores(tmp_path: Path, store: EvaluationStore) -> None:
    store.add_attempt(task(), "its worker process died")
    assert store.get(task()) is None
    with sqlite3.connect(tmp_path / "evaluations.sqlite") as database:
        ((described, reason),) = database.execute("SELECT task, reason FROM attempts").fetchall()
    assert json.loads(described)["seed"] == 0
    assert reason == "its worker process died"


def test_several_processes_may_open_and_write_one_store_at_once(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from tests.pipeline.trainings import curve, task
from tests.pipeline.trials.test_store import INPUTS
from pipeline.trials.store import EvaluationStore
print(flush=True)
sys.stdin.readline()
store = EvaluationStore(Path({str(tmp_path)!r}), INPUTS)
for seed in range(20):
    store.put(task(seed=seed), curve(seed / 100))
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
        for _ in range(3)
    ]
    for process in started:
        process.stdout.readline()  # all are ready
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    store = EvaluationStore(tmp_path, INPUTS)
    assert [store.get(task(seed=seed)) for seed in range(20)] == [curve(s / 100) for s in range(20)]


def test_a_run_that_diverged_is_stopped_by_thresholds_that_it_missed_before(store) -> None:
    store.put(task(), replace(stopped(0.3, 0.5), outcome="diverged"))
    assert store.get(task()).outcome == "diverged"
    assert store.get(raced(0.2, 0.4)).outcome == "diverged"
    earlier = store.get(raced(0.2, 0.6))
    assert (earlier.outcome, earlier.validation_score) == ("stopped", (0.3, 0.5))
    assert store.get(raced(0.4)).validation_score == (0.3,)
