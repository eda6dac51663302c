"""Sources of images: the embedded digits, and folders as real users have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biotune.data import UnusableImageError
from biotune.images import DigitsSource, ImageFolderSource, open_source


def save(path: Path, image: Image.Image | None = None, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (4, 4), "red")).save(path, **options)


def test_digits_are_those_of_scikit_learn_scaled_to_255():
    from sklearn.datasets import load_digits

    source, digits = DigitsSource(), load_digits()
    assert len(source.paths) == len(set(source.paths)) == 1797
    assert source.classes == tuple("0123456789")
    assert source.labels.tolist() == digits.target.tolist()
    assert source.splits is None
    for index in (0, 1, 1796):
        image = source.load(index)
        assert image.shape == (8, 8, 3)
        assert image.dtype == np.uint8
        for channel in range(3):
            assert np.abs(image[..., channel] - digits.images[index] * 255 / 16).max() <= 0.5
    assert max(source.load(index).max() for index in range(20)) == 255


def test_classes_and_paths_are_in_natural_order(tmp_path):
    for name in ("class10", "class2", "Class1"):
        for number in (10, 9):
            save(tmp_path / name / f"{number}.png")
    source = ImageFolderSource(tmp_path, "white")
    assert source.classes == ("Class1", "class2", "class10")
    assert source.paths[:3] == ["Class1/9.png", "Class1/10.png", "class2/9.png"]
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.labels.dtype == np.int64
    assert source.splits is None


def test_hidden_and_other_files_are_ignored_and_endings_match_in_any_case(tmp_path):
    save(tmp_path / "a" / "1.JPG", format="jpeg")
    save(tmp_path / "a" / "deeper" / "2.webp")
    save(tmp_path / "a" / ".thumbnails" / "3.png")
    save(tmp_path / "a" / ".hidden.png")
    save(tmp_path / ".cache" / "4.png")
    save(tmp_path / "b" / "5.tif")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "features.h5").write_text("x")
    (tmp_path / "README.md").write_text("x")
    assert ImageFolderSource(tmp_path, "white").paths == ["a/1.JPG", "a/deeper/2.webp", "b/5.tif"]


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Val"])
def test_split_folders_are_recognised(tmp_path, validation):
    for split in ("train", validation, "test"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "1.png")
    source = ImageFolderSource(tmp_path, "white")
    assert source.classes == ("cat", "dog")
    assert source.splits is not None
    by_path = dict(zip(source.paths, source.splits, strict=True))
    assert by_path["train/cat/1.png"] == "train"
    assert by_path[f"{validation}/dog/1.png"] == "validation"
    assert by_path["test/cat/1.png"] == "test"


def test_a_train_and_a_test_folder_are_enough(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "1.png")
    assert sorted(ImageFolderSource(tmp_path, "white").splits or []) == [
        "test",
        "test",
        "train",
        "train",
    ]


def test_train_may_be_a_class_among_others(tmp_path):
    for name in ("bus", "car", "train"):
        save(tmp_path / name / "1.png")
    source = ImageFolderSource(tmp_path, "white")
    assert source.classes == ("bus", "car", "train")
    assert source.splits is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.png", "val/a/1.png"], "holds the folders train, val; expected"),
        (["train/a/1.png"], "holds the folders train; expected"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png", "test/a/1.png"], "holds the folders"),
        (["train/a/1.png", "test/a/1.png", "extra/a/1.png"], "extra, test, train; expected"),
        (["train/1.png", "test/1.png"], "(train|test) holds no class folders; expected"),
        (["1.png"], "found no class folder; expected one folder per class"),
        (["mine/1.png"], "two classes or more, found mine; expected"),
        (["a/1.png", "b/notes.txt"], r"no image in the class folder .*/b: add images or"),
    ],
)
def test_other_layouts_are_clear_errors(tmp_path, files, message):
    for file in files:
        if file.endswith(".png"):
            save(tmp_path / file)
        else:
            (tmp_path / file).parent.mkdir()
            (tmp_path / file).write_text("x")
    with pytest.raises(ValueError, match=message):
        ImageFolderSource(tmp_path, "white")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: prepare\.path"):
        open_source("image_folder", tmp_path / "nowhere")


def test_an_unknown_source_lists_the_choices(tmp_path):
    with pytest.raises(
        ValueError, match=r"'digit': choose one of digits, image_folder, image_csv, flowers102"
    ):
        open_source("digit", tmp_path)


def test_known_sources_open(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "1.png")
    assert open_source("image_folder", tmp_path).name == "image_folder"
    assert open_source("digits", tmp_path / "nowhere").name == "digits"


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "caf\udce9.png", format="png")
    with pytest.raises(ValueError, match=r"b/caf\\udce9\.png' is not valid UTF-8: rename it"):
        ImageFolderSource(tmp_path, "white")


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    folder = tmp_path / "images"
    save(folder / "a" / "2.png")
    save(folder / "a" / "deeper" / "3.png")
    (folder / "a" / "deeper" / "again").symlink_to(folder / "a")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "4.png").symlink_to(folder / "a" / "2.png")
    paths = ImageFolderSource(folder, "white").paths
    assert paths == ["a/2.png", "a/deeper/3.png", "b/1.png", "b/4.png"]


def test_unicode_and_very_long_names_are_kept(tmp_path):
    long = "x" * 240 + ".png"
    for name in ("Käfer", "甲虫"):
        save(tmp_path / name / "bild ü.png")
        save(tmp_path / name / long)
    source = ImageFolderSource(tmp_path, "white")
    assert source.classes == ("Käfer", "甲虫")
    assert source.paths[0] == "Käfer/bild ü.png"
    assert [source.load(index).shape for index in range(4)] == [(4, 4, 3)] * 4


def test_one_class_is_one_whatever_unicode_form_its_folder_has(tmp_path):
    composed, decomposed = "K\u00e4fer", "Ka\u0308fer"
    for split, name in (("train", composed), ("test", decomposed)):
        save(tmp_path / split / name / "1.png")
        save(tmp_path / split / "ant" / "1.png")
    assert ImageFolderSource(tmp_path, "white").classes == ("ant", composed)


def test_two_folders_that_read_the_same_are_refused(tmp_path):
    for name in ("K\u00e4fer", "Ka\u0308fer", "ant"):
        save(tmp_path / name / "1.png")
    with pytest.raises(
        ValueError, match=r"two folders that read 'Käfer'.* put their images into one"
    ):
        ImageFolderSource(tmp_path, "white")


def test_a_broken_image_is_listed_and_found_when_it_is_loaded(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").touch()
    save(tmp_path / "b" / "1.png")
    source = ImageFolderSource(tmp_path, "white")
    with pytest.raises(UnusableImageError, match="the file is empty"):
        source.load(source.paths.index("a/2.png"))


def test_a_class_folder_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    """A disk that is not mounted must not cost a class."""
    folder = write_classes(tmp_path)
    (folder / "zz").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ValueError, match="zz is a link to nothing"):
        ImageFolderSource(folder, "white")


def test_a_link_to_itself_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_classes(tmp_path)
    (folder / "a" / "self.png").symlink_to(folder / "a" / "self.png")
    source = ImageFolderSource(folder, "white")
    with pytest.raises(UnusableImageError):
        source.load(source.paths.index("a/self.png"))


def write_classes(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name / "1.png")
    return tmp_path / "images"
