"""`biotune init images && biotune prepare` on a folder as people really have them.

data/README.md documents what becomes of each kind of mess; this is the proof.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from biotune.commands.group import main
from biotune.data.prepared import PreparedImages

RNG = np.random.default_rng(3)


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "L": 1}[mode]
    pixels = RNG.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def write(file: Path, image: Image.Image | None = None, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or noise()).save(file, **options)
    return file


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:400])


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of twenty good images each, in ``data/images``, and nothing else."""
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        for name in ("Käfer", "甲虫"):
            write(tmp_path / "data" / "images" / name / f"{number}.png")
    return tmp_path / "data" / "images"


def prepare(*changes: tuple[str, str]) -> Result:
    result = CliRunner().invoke(main, ["init", "images"])
    assert result.exit_code == 0, result.output
    params = Path("params.yaml")
    text = params.read_text().replace("image_size: 224", "image_size: 32")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    params.write_text(text)
    return CliRunner().invoke(main, ["prepare"], env={"COLUMNS": "200"})


def rejected() -> dict[str, dict[str, str]]:
    with Path("artifacts/prepared/rejected.csv").open(encoding="utf-8", newline="") as stream:
        return {Path(row["path"]).name: row for row in csv.DictReader(stream)}


def test_every_kind_of_mess_at_once_ends_as_documented(images: Path) -> None:
    beetle = images / "Käfer"
    used = [
        write(beetle / "transparent.png", noise("RGBA")),
        write(beetle / "palette.png", noise().convert("P"), transparency=0),
        write(beetle / "gray.png", noise("L")),
        write(beetle / "CMYK.JPG", noise("CMYK"), format="JPEG"),
        write(beetle / "a jpeg.png", format="JPEG"),
        write(beetle / ("long " + "x" * 230 + ".png")),
        write(beetle / "deeper" / "schön ✓.tiff"),
    ]
    deep = Image.fromarray(RNG.integers(0, 65536, (30, 40), dtype=np.uint16))
    used.append(write(beetle / "16 bit.png", deep))
    exif = Image.Exif()
    exif[0x0112] = 6
    used.append(write(beetle / "turned.jpg", exif=exif))
    elsewhere = write(images.parent / "elsewhere.png")
    (beetle / "linked.png").symlink_to(elsewhere)
    used.append(beetle / "linked.png")
    (beetle / "circle").symlink_to(beetle)

    unusable = {
        "empty.png": "the file is empty",
        "text.jpg": "the file is no image that can be read",
        "cut.png": "the file is damaged",
        "dangling.png": "a link to nothing",
        "bomb.png": "more than 89,478,485 pixels",
        "32 bit.tif": "32-bit numbers",
    }
    (beetle / "empty.png").touch()
    (beetle / "text.jpg").write_text("<html>")
    truncate(write(beetle / "cut.png"))
    (beetle / "dangling.png").symlink_to(images / "gone.png")
    write(beetle / "bomb.png", Image.new("1", (30_000, 3_000)))
    write(beetle / "32 bit.tif", Image.new("F", (4, 4), 0.5))

    two_labels = noise()
    write(beetle / "both a.png", two_labels)
    write(images / "甲虫" / "both b.png", two_labels)

    write(images / ".hidden" / "1.png")
    write(beetle / ".hidden.png")
    (beetle / "notes.txt").write_text("not an image, and not called one")

    result = prepare(("max_rejected: 0.05", "max_rejected: 0.2"))
    assert result.exit_code == 0, result.output
    prepared = PreparedImages.open(Path("artifacts/prepared"))
    names = {Path(path).name for path in prepared.paths}
    assert prepared.classes == ("Käfer", "甲虫")
    assert {file.name for file in used} <= names
    assert len(prepared.paths) == len(set(prepared.paths)) == 40 + len(used)
    left_out = rejected()
    assert set(left_out) == {*unusable, "both a.png", "both b.png"}
    for name, reason in unusable.items():
        assert left_out[name]["kind"] == "unusable"
        assert reason in left_out[name]["reason"]
    assert left_out["both a.png"]["kind"] == left_out["both b.png"]["kind"] == "contradiction"
    assert "6 cannot be read, 2 are in two classes at once" in result.output
    assert "Käfer/empty.png" in result.output
    assert "40 x 30" in result.output


def test_above_the_limit_the_stage_fails_and_says_which(images: Path) -> None:
    for number in range(4):
        (images / "Käfer" / f"{number}.png").write_bytes(b"")
    result = prepare()
    assert result.exit_code == 1
    assert (
        "4 of 40 images cannot be used, prepare.max_rejected allows 5.0% of them" in result.output
    )
    assert "Käfer/3.png: the file is empty" in result.output
    assert not Path("artifacts/prepared").exists()


def test_copies_across_split_folders_are_removed_from_training_and_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data" / "images"
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            for number in range(4):
                write(root / split / name / f"{number}.png")
    twin = noise()
    write(root / "train" / "a" / "twin.png", twin)
    write(root / "test" / "a" / "twin of it.png", twin)
    result = prepare()
    assert result.exit_code == 0, result.output
    assert list(rejected()) == ["twin.png"]
    assert rejected()["twin.png"]["reason"] == "a copy of the test image test/a/twin of it.png"
    assert "1 are copies of an image in a later split" in result.output
    counts = json.loads(Path("artifacts/prepared/dataset.json").read_text())["counts"]
    assert counts["train"] == {"a": 4, "b": 4}
    assert counts["test"] == {"a": 5, "b": 4}


def without_images(root: Path) -> None:
    (root / "empty class").mkdir()


def with_one_image(root: Path) -> None:
    write(root / "single" / "1.png")


@pytest.mark.parametrize(
    ("mess", "message"),
    [
        (without_images, "no image in the class folder data/images/empty class: add images or"),
        (with_one_image, "class single has 1 image(s), but every class needs one to train on"),
    ],
)
def test_a_class_with_too_few_images_is_refused(
    images: Path, mess: Callable[[Path], None], message: str
) -> None:
    mess(images)
    result = prepare()
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")
    assert not Path("artifacts/prepared").exists()


@pytest.mark.parametrize(("missing", "exit_code"), [("train", 1), ("validation", 1), ("test", 0)])
def test_a_class_that_one_split_folder_lacks(tmp_path, monkeypatch, missing, exit_code):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data" / "images"
    for split in ("train", "validation", "test"):
        for name in ("a", "b", "c"):
            if (split, name) != (missing, "c"):
                for number in range(3):
                    write(root / split / name / f"{number}.png")
    result = prepare()
    assert result.exit_code == exit_code, result.output
    if exit_code:
        assert f"the {missing} split has no image of class c" in result.output
    else:
        assert "Warning: no test image of c; nothing will be known of these." in result.output
        assert PreparedImages.open(Path("artifacts/prepared")).classes == ("a", "b", "c")
