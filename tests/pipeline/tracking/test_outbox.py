"""Records on disk: whole, in order, held by one process at a time, whatever happens to any."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.tracking.outbox import Outbox, StageRecords
from tests.imports import ROOT
from tests.outbox import unsent

HERE, ELSEWHERE = "here", "elsewhere"


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with closing(Outbox(tmp_path)) as opened:
        yield opened


@pytest.fixture
def stage(outbox: Outbox) -> StageRecords:
    made = outbox.begin("search", HERE, {"n": 0})
    made.append("metrics", {"n": 1})
    made.append("tags", {"n": 2})
    return made


def left(stage: StageRecords, destination: str = HERE) -> list[tuple[int, str, object]]:
    stage.position, records = -1, []
    while (record := stage.next_unsent(destination)) is not None:
        records.append((record.number, record.kind, record.content.get("n")))
        stage.position = record.number
    return records


def test_sent_is_what_was_noted_for_this_destination_and_nothing_before_it(
    stage: StageRecords,
) -> None:
    """The start comes always, as it says where the others go."""
    assert left(stage) == [(0, "start", 0), (1, "metrics", 1), (2, "tags", 2)], "in their order"
    stage.append("end", {"n": 3})
    record = stage.next_unsent(HERE)
    assert record is not None
    assert record.number == 3, "only what came since"
    stage.note_sent(record, HERE)
    assert [number for number, *_ in left(stage)] == [0, 1, 2], "put off, and not sent"
    assert [number for number, *_ in left(stage, ELSEWHERE)] == [0, 1, 2, 3]
    assert (stage.left(HERE), stage.left(ELSEWHERE)) == (3, 4)


def test_what_has_all_arrived_is_forgotten_and_only_then(
    stage: StageRecords, outbox: Outbox, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").touch()
    stage.append("file", {"file": stage.keep_file(tmp_path / "plan.json")})
    outbox.execute("UPDATE records SET sent = ?", HERE)
    stage.let_go(HERE)
    assert unsent(tmp_path) == [(stage.name, 0)], "it is not said how it ended"
    for taken in outbox.left_behind():
        taken.let_go(HERE)
        outbox.execute("UPDATE records SET sent = ?", HERE)
        taken.let_go(ELSEWHERE)
        assert len(unsent(tmp_path)) == 1
        taken.let_go(HERE)
    assert not unsent(tmp_path)
    assert not list(outbox.folder.glob("*-search-*"))


def test_a_living_process_keeps_its_records_and_others_are_taken_and_ended_once(
    outbox: Outbox, stage: StageRecords, tmp_path: Path
) -> None:
    later = outbox.begin("finetune", ELSEWHERE, {"n": 7})
    with closing(Outbox(tmp_path)) as other:
        assert not list(other.left_behind())
        stage.lock.release()
        later.lock.release()
        for _ in range(2):
            names = []
            for taken in other.left_behind():
                assert taken.taken
                assert taken.name not in {free.name for free in outbox.left_behind()}, "it is held"
                names.append((taken.name, taken.destination))
            assert names == [(stage.name, HERE), (later.name, ELSEWHERE)], "the oldest first"
        assert [kind for _, kind, _ in left(stage)] == ["start", "metrics", "tags", "end"]
        rows = stage.select("time, content", "true")
        assert rows[3] == (rows[2][0], b'{"status": "KILLED"}'), "when it was last heard of"


def test_a_killed_process_leaves_what_it_had_written_whole(tmp_path: Path, outbox: Outbox) -> None:
    script = f"""
import os, signal
from pathlib import Path
from pipeline.tracking.outbox import Outbox
outbox = Outbox(Path({str(tmp_path)!r}))
stage = outbox.begin("search", "here", {{"n": 0}})
outbox.execute("BEGIN")
stage.append("metrics", {{"n": 1}})
print(stage.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert killed.returncode == -9, killed.stderr
    how = [outbox.execute(f"PRAGMA {name}") for name in ("journal_mode", "synchronous")]
    assert how == [[("wal",)], [(2,)]], "after a power cut, too"
    (taken,) = outbox.left_behind()
    assert taken.name == killed.stdout.strip()
    assert left(taken) == [(0, "start", 0), (1, "end", None)]


def test_stages_at_once_on_one_home_do_not_disturb_each_other(tmp_path: Path) -> None:
    def whole_stage(number: int) -> list[tuple[int, str, object]]:
        with closing(Outbox(tmp_path)) as own:
            stage = own.begin("search", HERE, {"n": number})
            for _ in range(4):
                stage.append("child", {"n": number})
            return left(stage)

    with ThreadPoolExecutor(5) as pool:
        for number, found in enumerate(pool.map(whole_stage, range(5))):
            assert [n for n, *_ in found] == list(range(5))
            assert {own for *_, own in found} == {number}
    assert [records for _, records in unsent(tmp_path)] == [5] * 5


def test_a_full_disk_names_the_file_and_leaves_what_was_written(
    outbox: Outbox, stage: StageRecords
) -> None:
    outbox.execute("PRAGMA max_page_count = 1")
    with pytest.raises(OSError, match=r"free space, and run again: .*records\.sqlite") as raised:
        stage.append("metrics", {"n": "x" * 10_000})
    assert raised.value.errno == errno.ENOSPC
    outbox.execute("PRAGMA max_page_count = 1000")
    stage.append("end", {"n": 3})
    assert [n for _, _, n in left(stage)] == [0, 1, 2, 3]


def test_a_file_is_kept_as_it_was_when_it_was_tracked(
    stage: StageRecords, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synchronised.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    file = tmp_path / "table.csv"
    file.write_text("before")
    copy = stage.folder / stage.keep_file(file)
    file.write_text("after")
    assert copy.read_text() == "before"
    assert copy.name == "table.csv"
    assert {copy, copy.parent, stage.folder, outbox.folder} <= set(synchronised)


@pytest.mark.parametrize("place", [0, 18, 70, 100, "records", "-search-"])
def test_a_damaged_file_is_kept_aside_and_said_and_the_next_stage_is_tracked(
    stage: StageRecords,
    outbox: Outbox,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    place: int | str,
) -> None:
    outbox.close()
    file = outbox.folder / "records.sqlite"
    content = bytearray(file.read_bytes())
    content[place if isinstance(place, int) else content.index(place.encode())] ^= 4
    file.write_bytes(content)
    with closing(Outbox(tmp_path)) as opened:
        other = opened.begin("export", HERE, {"n": 0})
        other.append("end", {"n": 1})
        assert left(other) == [(0, "start", 0), (1, "end", 1)]
    if place == 70:  # a number that we may use as we like
        assert len(unsent(tmp_path)) == 2
    else:
        aside = tmp_path / "outbox.damaged-1"
        assert (aside / "records.sqlite").read_bytes() == content
        assert f"it is kept in {aside}, and is not sent" in caplog.text


def test_damage_while_a_stage_runs_is_said_once_and_does_not_end_it(
    stage: StageRecords, outbox: Outbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (outbox.folder / "records.sqlite").write_bytes(b"x" * 12288)
    outbox.execute("PRAGMA shrink_memory")
    for _ in range(3):
        stage.append("metrics", {"n": 1})
    stage.let_go(HERE)
    assert stage.next_unsent(HERE) is None
    assert caplog.text.count("nothing more of this stage is tracked") == 1
    with closing(Outbox(tmp_path)) as opened:
        assert not list(opened.left_behind())
    assert (tmp_path / "outbox.damaged-1").is_dir()
