"""The prepared dataset: complete or absent, the same every time, and never loaded whole."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import biotune
from biotune.data import PreparedImages, Rejected, UnusableImageError
from biotune.data.splits import SPLITS
from biotune.images import (
    DigitsSource,
    TooManyRejectedError,
    prepare_images,
    reading,  # here, so that no test measures the memory of its imports
)

FILES = ["dataset.json", "images.npy", "rejected.csv", "samples.csv"]


class MadeUpSource:
    """Random images of two classes; ``copy_of`` makes images equal, ``broken`` some unreadable."""

    name = "made_up"
    classes = ("ash, white", "oak")
    splits: list[str] | None = None

    def __init__(self, count: int = 20, side: int = 6) -> None:
        self.paths = [f"{index}.png" for index in range(count)]
        self.labels = np.arange(count, dtype=np.int64) % 2
        self.side = side
        self.copy_of: dict[int, int] = {}
        self.broken: set[int] = set()

    def load(self, index: int) -> np.ndarray:
        if index in self.broken:
            raise UnusableImageError("the file is empty")
        rng = np.random.default_rng(self.copy_of.get(index, index))
        return rng.integers(0, 256, (self.side, self.side + 2, 3), dtype=np.uint8)


def prepare(out: Path, source: MadeUpSource | None = None, **changes) -> PreparedImages:
    settings = {"image_size": 8, "train_images": 8, "validation_images": 6, "seed": 0} | changes
    return prepare_images(source or MadeUpSource(), out, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {child.name: child.read_bytes() for child in sorted(folder.iterdir())}


def test_the_default_prepares_300_and_300_digits_and_keeps_the_rest_for_the_test(tmp_path):
    source = DigitsSource()
    prepared = prepare_images(
        source, tmp_path / "p", image_size=8, train_images=300, validation_images=300, seed=0
    )
    assert [len(prepared.indices(s)) for s in ("train", "validation", "test")] == [300, 300, 1197]
    assert prepared.classes == source.classes
    assert prepared.labels.tolist() == source.labels.tolist()
    assert np.array_equal(prepared.images[7], source.load(7))
    assert prepared.rejected() == []
    assert prepared.original_sizes == {"smallest": (8, 8), "largest": (8, 8)}


def test_the_files_say_the_same(tmp_path):
    prepared = prepare(tmp_path / "deep" / "prepared")
    folder = prepared.folder
    assert sorted(contents(folder)) == FILES
    images = np.load(folder / "images.npy")
    assert images.shape == (20, 8, 8, 3)
    assert images.dtype == np.uint8
    with (folder / "samples.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == prepared.paths == MadeUpSource().paths
    assert rows[0]["label"] == "ash, white"
    assert [row["split"] for row in rows] == prepared.splits.tolist()
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["classes"] == ["ash, white", "oak"]
    assert dataset["image_size"] == 8
    assert dataset["source"] == "made_up"
    assert dataset["original_sizes"] == {"smallest": [8, 6], "largest": [8, 6]}
    assert (folder / "rejected.csv").read_text() == "path,label,split,kind,reason\n"
    assert dataset["counts"]["train"] == {"ash, white": 4, "oak": 4}
    assert dataset["counts"]["test"] == {"ash, white": 3, "oak": 3}
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("images.npy", "rejected.csv", "samples.csv")
    }
    assert {name: entry["sha256"] for name, entry in dataset["files"].items()} == digests
    both = digests["images.npy"] + digests["samples.csv"]
    assert prepared.fingerprint == hashlib.sha256(both.encode()).hexdigest()


def test_two_runs_write_the_same_bytes_and_another_seed_another_split(tmp_path):
    first, again = prepare(tmp_path / "one"), prepare(tmp_path / "two")
    other = prepare(tmp_path / "three", seed=1)
    assert contents(first.folder) == contents(again.folder)
    assert first.splits.tolist() != other.splits.tolist()
    assert first.fingerprint != other.fingerprint


def test_images_are_memory_mapped_and_read_only(tmp_path):
    prepared = prepare(tmp_path / "prepared")
    assert isinstance(prepared.images, np.memmap)
    assert not prepared.images.flags.writeable


def test_preparing_does_not_hold_the_images_in_memory(tmp_path):
    tracemalloc.start()
    prepare(tmp_path / "prepared", MadeUpSource(count=200, side=128), image_size=128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 128 * 128 * 3 / 4


def test_on_image_is_called_for_each_image(tmp_path):
    calls: list[None] = []
    prepare(tmp_path / "prepared", on_image=lambda: calls.append(None))
    assert len(calls) == 20


def test_images_that_a_predefined_split_leaves_out_are_not_prepared(tmp_path):
    source = MadeUpSource()
    source.splits = ["train"] * 10 + ["validation"] * 6 + ["test"] * 4
    prepared = prepare(tmp_path / "p", source, train_images=4, validation_images=None)
    assert [len(prepared.indices(s)) for s in ("train", "validation", "test")] == [4, 6, 4]
    assert len(prepared.images) == len(prepared.paths) == 14
    assert prepared.paths[-1] == "19.png"


def test_an_image_that_cannot_be_read_is_left_out_and_listed(tmp_path):
    whole = prepare(tmp_path / "whole")
    source = MadeUpSource()
    source.broken = {11}
    prepared = prepare(tmp_path / "prepared", source)
    assert prepared.rejected() == [
        Rejected("11.png", "oak", whole.splits[11], "unusable", "the file is empty")
    ]
    kept = [index for index in range(20) if index != 11]
    assert prepared.paths == [whole.paths[index] for index in kept]
    assert prepared.splits.tolist() == whole.splits[kept].tolist()
    assert prepared.labels.tolist() == whole.labels[kept].tolist()
    assert np.array_equal(prepared.images, whole.images[kept])
    dataset = json.loads((prepared.folder / "dataset.json").read_text())
    assert dataset["rejected"] == {"unusable": 1}


def test_too_many_of_them_are_refused_by_name_and_nothing_is_written(tmp_path):
    source = MadeUpSource(count=40)
    source.broken = set(range(5, 20))
    message = (
        r"15 of 40 images cannot be used, prepare\.max_rejected allows 30\.0% .*\n"
        r"  5\.png: the file is empty\n(.*\n){8}  14\.png: .*\n  and 5 more"
    )
    with pytest.raises(TooManyRejectedError, match=message):
        prepare(tmp_path / "artifacts" / "prepared", source, max_rejected=0.3)
    assert list((tmp_path / "artifacts").iterdir()) == []
    enough = {"train_images": 16, "validation_images": 12, "max_rejected": 0.375}
    assert len(prepare(tmp_path / "prepared", source, **enough).images) == 25


def test_a_class_that_lost_its_last_image_is_named(tmp_path):
    source = MadeUpSource()
    source.splits = ["train"] * 8 + ["validation"] * 6 + ["test"] * 6
    source.broken = {9, 11, 13}
    settings = {"train_images": None, "validation_images": None, "max_rejected": 1.0}
    with pytest.raises(ValueError, match="validation split has no usable image of class oak left"):
        prepare(tmp_path / "prepared", source, **settings)


def test_an_old_dataset_stays_until_the_new_one_is_complete(tmp_path):
    before = contents(prepare(tmp_path / "prepared").folder)
    source = MadeUpSource()
    source.broken = {11}
    with pytest.raises(ValueError, match="cannot be used"):
        prepare(tmp_path / "prepared", source, seed=1, max_rejected=0.0)
    assert contents(tmp_path / "prepared") == before
    replaced = prepare(tmp_path / "prepared", seed=1)
    assert contents(replaced.folder) != before
    assert [child.name for child in tmp_path.iterdir()] == ["prepared"]


def test_a_killed_process_leaves_the_old_dataset_intact(tmp_path):
    before = contents(prepare(tmp_path / "prepared").folder)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from biotune.images import DigitsSource, prepare_images\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare_images(DigitsSource(), Path(sys.argv[1]), image_size=8, train_images=300,\n"
        "               validation_images=300, seed=0, on_image=kill)"
    )
    assert run_python(code, tmp_path / "prepared").returncode == -9
    assert contents(tmp_path / "prepared") == before
    prepare(tmp_path / "prepared")
    assert [child.name for child in tmp_path.iterdir()] == ["prepared"], "what it left is gone"


def test_a_second_one_of_the_same_folder_is_told_so_and_the_first_is_whole(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from biotune.images import DigitsSource, prepare_images\n"
        "wait = lambda: print('half', flush=True) or sys.stdin.readline()\n"
        "prepare_images(DigitsSource(), Path(sys.argv[1]), image_size=8, train_images=300,\n"
        "               validation_images=300, seed=0, on_image=wait)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "prepared"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(biotune.__file__).parents[1],
    ) as first:
        first.stdout.readline()
        with pytest.raises(BlockingIOError, match=r"another process is writing .*prepared at"):
            prepare(tmp_path / "prepared")
        first.communicate(b"\n" * 2000)
    assert first.returncode == 0
    PreparedImages.open(tmp_path / "prepared").check_files()
    assert [child.name for child in tmp_path.iterdir()] == ["prepared"]


def test_many_processes_write_the_same_bytes_as_one(tmp_path, monkeypatch):
    source = MadeUpSource(count=reading.WORTH_PROCESSES + 10)
    source.broken = {3}
    source.copy_of = {5: 7}
    several = prepare(tmp_path / "several", source)
    monkeypatch.setattr(reading, "WORTH_PROCESSES", 1000)
    assert contents(several.folder) == contents(prepare(tmp_path / "one", source).folder)


class KillerSource(MadeUpSource):
    """Its tenth image is the end of whoever decodes it, as memory running out is."""

    def load(self, index: int) -> np.ndarray:
        if index == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index)


def test_a_decoding_process_that_is_killed_is_a_clear_error(tmp_path):
    source = KillerSource(count=reading.WORTH_PROCESSES)
    with pytest.raises(OSError, match="a process that decodes images was killed"):
        prepare(tmp_path / "artifacts" / "prepared", source)
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_folder_that_is_no_prepared_dataset_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_text("precious")
    with pytest.raises(FileExistsError, match="photos exists and is not a prepared dataset"):
        prepare(tmp_path / "photos")
    assert (tmp_path / "photos" / "1.png").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        ({"train_images": 18}, "18 train and 6 validation"),
        ({"train_images": 1}, "1 train images .* each of the 2 classes"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_decoded(tmp_path, changes, message):
    source = KillerSource()
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "prepared", source, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_class_without_images_is_named(tmp_path):
    source = MadeUpSource()
    source.labels = np.zeros(20, dtype=np.int64)
    with pytest.raises(ValueError, match="class oak has no image"):
        prepare(tmp_path / "prepared", source)


def test_too_little_space_is_an_error_and_not_a_crash(tmp_path):
    with pytest.raises(OSError, match=r"images\.npy needs .* bytes, but only .* are free"):
        prepare(tmp_path / "prepared", image_size=10_000_000)


def test_of_copies_in_two_splits_the_one_in_the_later_split_stays(tmp_path):
    splits = prepare(tmp_path / "plain").splits
    train, validation, test = (
        [int(i) for i in np.flatnonzero(splits == split) if i % 2] for split in SPLITS
    )
    source = MadeUpSource()
    source.copy_of = {
        train[0]: test[0],
        validation[0]: test[0],
        train[1]: validation[1],
        train[3]: train[2],  # within a split, which harms nobody
    }
    prepared = prepare(tmp_path / "copies", source, max_rejected=0.0)
    assert {(image.path, image.kind, image.reason) for image in prepared.rejected()} == {
        (f"{train[0]}.png", "copy", f"a copy of the test image {test[0]}.png"),
        (f"{validation[0]}.png", "copy", f"a copy of the test image {test[0]}.png"),
        (f"{train[1]}.png", "copy", f"a copy of the validation image {validation[1]}.png"),
    }
    assert len(prepared.images) == 17
    digests = {split: set() for split in SPLITS}
    for image, split in zip(prepared.images, prepared.splits, strict=True):
        digests[split].add(image.tobytes())
    assert not digests["train"] & (digests["validation"] | digests["test"])
    assert not digests["validation"] & digests["test"]


def test_a_picture_with_two_labels_is_left_out_wherever_it_is(tmp_path):
    source = MadeUpSource(count=40)
    source.copy_of = {1: 0}
    settings = {"train_images": 16, "validation_images": 12}
    prepared = prepare(tmp_path / "prepared", source, **settings)
    assert [(image.path, image.kind, image.reason) for image in prepared.rejected()] == [
        ("0.png", "contradiction", "the same picture is labelled oak: 1.png"),
        ("1.png", "contradiction", "the same picture is labelled ash, white: 0.png"),
    ]
    assert len(prepared.images) == 38
    with pytest.raises(TooManyRejectedError, match=r"0\.png: the same picture is labelled oak"):
        prepare(tmp_path / "strict", source, max_rejected=0.04, **settings)


def test_indices_are_those_of_a_split(tmp_path):
    prepared = prepare(tmp_path / "prepared")
    indices = prepared.indices("validation")
    assert indices.dtype == np.int64
    assert set(prepared.splits[indices]) == {"validation"}
    with pytest.raises(ValueError, match=r"unknown split 'val': .* train, validation, test"):
        prepared.indices("val")


def test_a_pickle_holds_the_folder_and_not_the_images(tmp_path):
    prepared = prepare(tmp_path / "prepared", image_size=32)
    pickled = pickle.dumps(prepared)
    assert len(pickled) < 1000
    assert np.array_equal(pickle.loads(pickled).images, prepared.images)  # noqa: S301


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_says_to_run_prepare(tmp_path, name):
    folder = prepare(tmp_path / "prepared").folder
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing: run the prepare stage first"):
        PreparedImages.open(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", "{", "is damaged .* run the prepare stage again"),
        ("dataset.json", "[]", "is damaged .* run the prepare stage again"),
        ("dataset.json", '{"classes": ["ash, white"]}', "'checksum' is not in dataset.json"),
        ("dataset.json", '{"checksum": ""}', "dataset.json was changed since it was written"),
        ("samples.csv", "", "must have the columns path, label, split"),
        ("samples.csv", "file,label\n", "must have the columns path, label, split"),
        ("samples.csv", "path,label,split\n1.png,oak,train\n", r"\[20, 8, 8, 3\].*\[1, 8, 8, 3\]"),
        ("samples.csv", "path,label,split\n" + "1.png,oak,dev\n" * 20, "unknown split 'dev'"),
        ("images.npy", "", "is damaged"),
        ("images.npy", "nonsense", "is damaged"),
    ],
)
def test_damaged_files_are_clear_errors(tmp_path, name, content, message):
    folder = prepare(tmp_path / "prepared").folder
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        PreparedImages.open(folder)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(biotune.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | {"PYTHONPATH": root},
        check=False,
        capture_output=True,
        text=True,
    )


def test_damage_to_the_list_of_rejected_images_is_named(tmp_path):
    prepared = prepare(tmp_path / "prepared")
    (prepared.folder / "rejected.csv").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"rejected\.csv must have the columns path, label, split"):
        prepared.rejected()


def test_opening_imports_neither_torch_nor_scikit_learn(tmp_path):
    folder = prepare(tmp_path / "prepared").folder
    code = (
        "import sys; from pathlib import Path; from biotune.data import PreparedImages\n"
        "prepared = PreparedImages.open(Path(sys.argv[1]))\n"
        "print(prepared.images.shape, {'torch', 'sklearn'} & set(sys.modules))"
    )
    result = run_python(code, folder)
    assert result.stdout.strip() == "(20, 8, 8, 3) set()", result.stderr


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_of_any_file_is_found_and_named(tmp_path, name):
    folder = prepare(tmp_path / "prepared").folder
    content = bytearray((folder / name).read_bytes())
    place = content.rindex(b"oak") if name == "samples.csv" else len(content) // 2
    content[place] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged .*run the prepare stage again"):
        PreparedImages.open(folder).check_files()
    (folder / name).write_bytes(
        bytes(content[:place]) + bytes([content[place] ^ 1]) + bytes(content[place + 1 :])
    )
    PreparedImages.open(folder).check_files()


def test_wherever_a_bit_of_a_head_flips_it_is_one_message(tmp_path):
    folder = prepare(tmp_path / "prepared").folder
    for name, count in (("images.npy", 128), ("samples.csv", 40), ("dataset.json", 40)):
        whole = (folder / name).read_bytes()
        for place in range(count):
            content = bytearray(whole)
            content[place] ^= 1 << place % 8
            (folder / name).write_bytes(content)
            with pytest.raises(ValueError, match=r"is damaged .*run the prepare stage again"):
                PreparedImages.open(folder).check_files()
        (folder / name).write_bytes(whole)
    PreparedImages.open(folder).check_files()


def test_bytes_that_are_no_table_are_one_message(tmp_path):
    folder = prepare(tmp_path / "prepared").folder
    for name in ("samples.csv", "rejected.csv"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(b'"' + b"x" * 200_000)  # longer than a field may be
        with pytest.raises(ValueError, match=r"is damaged .*field larger than field limit"):
            PreparedImages.open(folder).rejected()
        (folder / name).write_bytes(whole)
