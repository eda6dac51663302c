"""Records on disk: whole, in order, held by one process at a time, whatever happens to any."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tracking import spool as spools
from pipeline.tracking.spool import Spool, count_left_behind, left_behind, new_spool
from tests.imports import ROOT


def records(spool: Spool) -> list[tuple[int, str, object]]:
    found = []
    while (record := spool.next_record()) is not None:
        found.append((record.number, record.kind, record.content.get("n")))
    return found


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = new_spool(tmp_path, "search")
    made.append("start", {"n": 0})
    made.append("metrics", {"n": 1})
    return made


def test_records_come_in_their_order_as_they_are_written(spool: Spool) -> None:
    assert records(spool) == [(0, "start", 0), (1, "metrics", 1)]
    assert records(spool) == []
    spool.append("end", {"n": 2})
    assert records(spool) == [(2, "end", 2)]
    spool.rewind()
    assert len(records(spool)) == spool.written == 3


def test_a_line_that_is_not_whole_yet_is_not_read(spool: Spool) -> None:
    file = spool.folder / "records.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert records(spool) == [(0, "start", 0)]
    file.write_bytes(whole)
    assert records(spool) == [(1, "metrics", 1)]


def test_a_living_process_keeps_its_spool_and_a_closed_one_is_taken_and_ended(
    spool: Spool, tmp_path: Path
) -> None:
    assert list(left_behind(tmp_path)) == []
    assert count_left_behind(tmp_path) == 0
    spool.close()
    assert count_left_behind(tmp_path) == 1
    (taken,) = left_behind(tmp_path)
    assert taken.inherited
    assert [kind for _, kind, _ in records(taken)] == ["start", "metrics", "end"]
    assert list(left_behind(tmp_path)) == []
    taken.close()
    (again,) = left_behind(tmp_path)
    assert again.written == 3, "it is ended once"
    again.remove()
    assert not list((tmp_path / "spool").iterdir())


def test_a_killed_process_leaves_its_spool_to_others_with_its_torn_line_cut_off(
    tmp_path: Path,
) -> None:
    script = f"""
import os, signal
from pathlib import Path
from pipeline.tracking.spool import new_spool
spool = new_spool(Path({str(tmp_path)!r}), "search")
spool.append("start", {{}})
print(spool.folder, flush=True)
with (spool.folder / "records.jsonl").open("a") as file:
    file.write("half a li")
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert killed.returncode == -9, killed.stderr
    (taken,) = left_behind(tmp_path)
    assert str(taken.folder) == killed.stdout.strip()
    assert [kind for _, kind, _ in records(taken)] == ["start", "end"]
    taken.close()


def test_what_was_killed_before_it_began_or_while_it_was_removed_goes(tmp_path: Path) -> None:
    new_spool(tmp_path, "search").close()
    (tmp_path / "spool" / f".{0:020d}-search-0123abcd").mkdir()
    assert list(left_behind(tmp_path)) == []
    assert not list((tmp_path / "spool").iterdir())


def test_a_damaged_record_is_told_from_others_and_kept_for_people(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = spool.folder / "records.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second.replace(b"metrics", b"m\xfftrics"))
    assert [kind for _, kind, _ in records(spool)] == ["start", "damaged"]
    spool.rewind()
    spool.next_record()
    damaged = spool.next_record()
    assert damaged is not None
    spool.set_aside(damaged, "because")
    assert b"m\xfftrics" in (tmp_path / "spool-damaged" / f"{spool.name}.jsonl").read_bytes()
    assert "cannot go to MLflow (because)" in caplog.text


def test_a_spool_that_does_not_say_what_it_is_of_is_kept_aside_whole(
    spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = spool.folder / "records.jsonl"
    file.write_bytes(b"x" + file.read_bytes())
    spool.close()
    assert list(left_behind(tmp_path)) == []
    assert (tmp_path / "spool-damaged" / spool.name / "records.jsonl").is_file()
    assert "the first record of" in caplog.text


def test_a_full_disk_names_the_file_and_leaves_what_was_written(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"free space, and run again: .*records\.jsonl") as raised:
        spool.append("metrics", {"n": 9})
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    spool.append("end", {"n": 2})
    assert [n for _, _, n in records(spool)] == [0, 1, 2]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sent": "x", "destination": "here"}'])
def test_what_is_sent_counts_for_its_destination_and_nonsense_for_none(
    spool: Spool, content: str
) -> None:
    assert spool.sent("here") == 0
    spool.note_sent(1, "here")
    assert (spool.sent("here"), spool.sent("elsewhere")) == (1, 0)
    file = spool.folder / "sent.json"
    file.write_text(json.dumps({"sent": 99, "destination": "here"}))
    assert spool.sent("here") == 0, "more than there are"
    file.write_text(content)
    assert spool.sent("here") == 0


def test_a_file_is_kept_as_it_was_when_it_was_tracked(spool: Spool, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("before")
    place = spool.keep_file(file)
    file.write_text("after")
    assert (spool.folder / place).read_text() == "before"
    assert Path(place).name == "table.csv"


def test_names_tell_spools_apart_and_sort_them_by_time(tmp_path: Path) -> None:
    made = [new_spool(tmp_path, "search") for _ in range(3)]
    assert sorted(one.name for one in made) == [one.name for one in made]
    assert len({one.name for one in made}) == 3
    assert spools._folders(tmp_path) == [one.folder for one in made]


def test_an_interruption_while_the_disk_is_waited_for_leaves_what_was_written(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        assert spool.next_record() is None, "nobody reads it before"
        raise KeyboardInterrupt

    records(spool)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spool.append("metrics", {"n": 9})
    monkeypatch.undo()
    spool.append("end", {"n": 2})
    assert records(spool) == [(2, "end", 2)]
    spool.rewind()
    assert len(records(spool)) == spool.written == 3


@pytest.mark.parametrize("joined", [0, 1, 2, 3])
def test_a_flipped_line_end_moves_no_other_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, joined: int
) -> None:
    made = new_spool(tmp_path, "search")
    for n in range(5):
        made.append("start" if n == 0 else "child", {"n": n})
    made.append("end", {"n": 5})
    lines = [made.next_record() for _ in range(5)]
    assert lines[3] is not None
    made.note_sent(lines[3].end, "here")
    made.close()
    file = made.folder / "records.jsonl"
    content = bytearray(file.read_bytes())
    end = [place for place, byte in enumerate(content) if byte == ord("\n")][joined]
    content[end] ^= 4
    file.write_bytes(content)
    found = list(left_behind(tmp_path))
    if joined == 0:
        assert not found, "without its first record it is set aside"
        return
    (taken,) = found
    unsent = []
    while (record := taken.next_record()) is not None:
        if record.begin >= taken.sent("here"):
            unsent.append((record.number, record.content.get("n")))
        if record.kind == "damaged":
            taken.set_aside(record, "why")
            aside = (tmp_path / "spool-damaged" / f"{taken.name}.jsonl").read_bytes()
            assert aside == bytes(content[record.begin : record.end])
    assert unsent == ([(4, 4), (5, 5)] if joined != 3 else [(5, 5)])
    taken.close()


def test_what_is_set_aside_is_the_record_whatever_bytes_it_holds(
    spool: Spool, tmp_path: Path
) -> None:
    file = spool.folder / "records.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first.replace(b"start", b"st\rrt") + second.replace(b"metrics", b"metr\x0bcs"))
    spool.next_record()
    damaged = spool.next_record()
    assert damaged is not None
    spool.set_aside(damaged, "because")
    aside = (tmp_path / "spool-damaged" / f"{spool.name}.jsonl").read_bytes()
    assert aside == second.replace(b"metrics", b"metr\x0bcs")


def test_records_that_were_written_without_numbers_are_numbered_by_their_place(
    spool: Spool, tmp_path: Path
) -> None:
    text = '{"kind": "metrics", "time": 5, "content": {"n": 7}}'
    checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
    with (spool.folder / "records.jsonl").open("a") as stream:
        stream.write(f"{checksum} {text}\n")
    spool.close()
    (taken,) = left_behind(tmp_path)
    assert records(taken)[2:] == [(2, "metrics", 7), (3, "end", None)]
    taken.close()


def test_what_is_not_a_spool_is_left_alone(tmp_path: Path) -> None:
    for name in ("backup", ".hidden"):
        (tmp_path / "spool" / name).mkdir(parents=True)
        (tmp_path / "spool" / name / "precious.txt").touch()
    assert list(left_behind(tmp_path)) == []
    assert count_left_behind(tmp_path) == 0
    assert len(list((tmp_path / "spool").glob("*/precious.txt"))) == 2


def test_a_kept_file_and_the_spools_own_names_are_synchronised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synchronised.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    made = new_spool(tmp_path, "search")
    made.append("start", {})
    (tmp_path / "file").touch()
    place = made.folder / made.keep_file(tmp_path / "file")
    assert {made.folder / "records.jsonl", made.folder, place, place.parent} <= set(synchronised)
