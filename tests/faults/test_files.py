"""Files that are damaged, disks that are full, and files that mean harm."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from biotune.finetuning.backbones import build_backbone
from tests.faults.campaign import Place, Reference, Row, tracked, whole_campaign
from tests.mlflow_server import all_runs
from tests.tiny import NETWORK, write_tiny_params

Injected = Callable[..., Row]


def flip(file: Path, place: int) -> None:
    """One bit of a file, as a bad disk or cable would."""
    with file.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 4]))


@pytest.mark.slow
def test_a_flipped_bit_of_the_prepared_images_is_found(
    place: Place, injected: Injected, tmp_path: Path
) -> None:
    row = injected("one flipped bit in images.npy, samples.csv and dataset.json", 3)
    prepared = tmp_path / "prepared"
    shutil.copytree(place.folder / "artifacts/prepared", prepared)
    for name in ("images.npy", "samples.csv", "dataset.json"):
        size = (prepared / name).stat().st_size
        flip(prepared / name, size // 2)
        run = place.start("search", "--prepared", str(prepared))
        assert run.wait() == 1, run.output
        assert "is damaged" in run.output
        assert "run the prepare stage again" in run.output
        assert not place.known(), "and nothing was trained on it"
        flip(prepared / name, size // 2)
        row.survived += 1


@pytest.mark.slow
def test_flipped_bits_in_the_store_and_the_outbox_are_found_and_stop_nothing(
    place: Place, reference: Reference, injected: Injected
) -> None:
    row = injected("one flipped bit in the evaluation store, and one in the outbox", 2)
    run = place.search("http://127.0.0.1:9")
    assert run.wait() == 0, run.output
    with sqlite3.connect(place.home / "evaluations.sqlite") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ((curve,),) = database.execute("SELECT curve FROM curves LIMIT 1").fetchall()
    content = (place.home / "evaluations.sqlite").read_bytes()
    flip(place.home / "evaluations.sqlite", content.index(curve) + len(curve) // 2)
    outbox = place.home / "outbox/records.sqlite"
    flip(outbox, outbox.read_bytes().index(b"-search-"))

    run = place.search()
    assert run.wait() == 0, run.output
    assert "an entry is damaged (its checksum differs): it is trained again" in run.output
    assert place.results() == reference.results
    assert "had not been sent to MLflow was damaged on the disk: it is kept in" in run.output
    assert len(list(place.home.glob("outbox.damaged-1/records.sqlite"))) == 1
    names = [name for name, *_ in tracked(f"sqlite:///{place.home / 'mlflow.db'}")]
    assert names.count("search") == 1
    row.survived = 2


def test_a_pickle_that_means_harm_is_refused_and_not_run(
    place: Place, injected: Injected, tmp_path: Path
) -> None:
    row = injected("a malicious pickle as model.weights")
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {ran}",))

    weights = tmp_path / "weights.pt"
    weights.write_bytes(pickle.dumps({"conv.weight": Harm()}))
    params = write_tiny_params(tmp_path / "my.yaml", model__weights=str(weights))
    run = place.search(params=params)
    assert run.wait() == 1, run.output
    assert "is not a state dict of plain tensors" in run.output
    assert not ran.exists()
    row.survived = 1


@pytest.mark.slow
def test_weights_that_make_every_run_diverge_are_no_score(
    place: Place, injected: Injected, tmp_path: Path
) -> None:
    row = injected("weights so large that every run diverges")
    weights = tmp_path / "weights.safetensors"
    tensors = build_backbone(NETWORK, "none", 10).network.state_dict()
    tensors["blocks.4.0.bn3.bias"][:] = 3e38  # what comes out of it is infinite
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights)
    params = write_tiny_params(tmp_path / "my.yaml", model__weights=str(weights))
    run = place.search(params=params)
    assert run.wait() == 1, run.output
    assert "diverged or ran out of memory; try a smaller search.base_lr" in run.output
    assert "Traceback" not in run.output
    database = f"sqlite:///{place.home / 'mlflow.db'}"
    genomes = [run for run in all_runs(database) if "biotune.candidate" in run.data.tags]
    assert {run.data.tags["biotune.outcome"] for run in genomes} == {"diverged"}
    assert {run.data.tags["biotune.reason"] for run in genomes} == {
        "seed 0: the loss of epoch 1 was no number"
    }
    row.survived = 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@whole_campaign
@pytest.mark.parametrize("free", [0, 30_000, 120_000])
def test_a_full_disk_is_said_and_a_rerun_after_freeing_space_goes_on(
    place: Place, reference: Reference, injected: Injected, small_disk: Path, free: int
) -> None:
    row = injected(f"the home's disk is full but for {free} bytes")
    home = small_disk / "home"
    home.mkdir()
    filler = small_disk / "filler"
    fill(filler, free)
    run = place.search(home=home)
    assert run.wait() == 1, run.output
    assert "Traceback" not in run.output
    assert "free space" in run.output
    stored = place.known(home)
    filler.unlink()
    run = place.search(home=home)
    assert run.wait() == 0, run.output
    assert place.results() == reference.results
    row.lost = max(0, stored - place.known(home))
    row.survived = 1


@whole_campaign
def test_a_full_disk_for_the_outputs_is_said_and_a_rerun_goes_on(
    place: Place, reference: Reference, injected: Injected, small_disk: Path
) -> None:
    row = injected("the outputs' disk is full")
    full = Place(place.folder, place.home)
    out = small_disk / "out"
    filler = small_disk / "filler"
    out.mkdir()
    fill(filler, 0)
    words = ["--best-plan", str(out / "best_plan.json"), "--evaluations", str(out / "all.csv")]
    run = full.start("search", *words)
    code = run.wait()
    assert code == 1, run.output
    assert "Traceback" not in run.output
    assert "free space" in run.output
    assert not [file for file in out.iterdir() if file.stat().st_size == 0], "no empty output"
    filler.unlink()
    run = full.start("search", *words)
    assert run.wait() == 0, run.output
    assert (out / "best_plan.json").read_bytes() == reference.results["best_plan.json"]
    row.survived = 1


@whole_campaign
def test_a_read_only_folder_is_said_before_any_training(
    place: Place, injected: Injected, small_disk: Path
) -> None:
    row = injected("a read-only home, and a read-only folder for outputs", 2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run = place.search(home=small_disk / "home")
    assert run.wait() == 1, run.output
    assert "Read-only file system" in run.output
    row.survived += 1
    run = place.start("search", "--best-plan", str(small_disk / "best_plan.json"))
    assert run.wait() == 1, run.output
    assert "best_plan.json cannot be written" in run.output
    assert "Traceback" not in run.output
    assert not place.known()
    row.survived += 1


def fill(file: Path, free: int) -> None:
    """Write until only so many bytes are free."""
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(1 << 16))
        except OSError:
            size = stream.tell()
        stream.truncate(max(0, size - free))
