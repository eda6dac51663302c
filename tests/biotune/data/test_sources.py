"""Sources of images: the embedded digits, and folders as real users have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biotune.data.sources import DigitsSource, ImageFolderSource, open_source


def save(path: Path, image: Image.Image | None = None, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (4, 4), "red")).save(path, **options)


def load_one(folder: Path, image: Image.Image, ending: str, **options: object) -> np.ndarray:
    save(folder / "a" / f"picture{ending}", image, **options)
    save(folder / "b" / "other.png")
    source = ImageFolderSource(folder)
    loaded = source.load(source.paths.index(f"a/picture{ending}"))
    assert loaded.dtype == np.uint8
    assert loaded.shape[2:] == (3,)
    return loaded


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
    source = ImageFolderSource(tmp_path)
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
    assert ImageFolderSource(tmp_path).paths == ["a/1.JPG", "a/deeper/2.webp", "b/5.tif"]


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Val"])
def test_split_folders_are_recognised(tmp_path, validation):
    for split in ("train", validation, "test"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "1.png")
    source = ImageFolderSource(tmp_path)
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
    assert sorted(ImageFolderSource(tmp_path).splits or []) == ["test", "test", "train", "train"]


def test_train_may_be_a_class_among_others(tmp_path):
    for name in ("bus", "car", "train"):
        save(tmp_path / name / "1.png")
    source = ImageFolderSource(tmp_path)
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
        (["a/1.png", "b/notes.txt"], "no image that can be read in class folder b: add"),
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
        ImageFolderSource(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: prepare\.path"):
        open_source("image_folder", tmp_path / "nowhere")


def test_an_unknown_source_lists_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"'digit': choose one of digits, image_folder"):
        open_source("digit", tmp_path)


def test_known_sources_open(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "1.png")
    assert open_source("image_folder", tmp_path).name == "image_folder"
    assert open_source("digits", tmp_path / "nowhere").name == "digits"


def test_the_rotation_of_the_camera_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 8, 1))  # the sensor's first row
    exif = Image.Exif()
    exif[0x0112] = 6  # "row 0 is the right-hand side"
    loaded = load_one(tmp_path, image, ".png", exif=exif)
    assert loaded.shape == (8, 4, 3)
    assert loaded[:, 3].min() == 255
    assert loaded[:, :3].max() == 0


def test_transparency_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert load_one(tmp_path, image, ".png").tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.putpixel((1, 0), 1)
    loaded = load_one(tmp_path, image, ".png", transparency=transparency)
    assert loaded.tolist() == [[[0, 0, 255], [255, 255, 255]]]


def test_a_palette_becomes_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert load_one(tmp_path, image, ".png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("ending", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_is_scaled_from_its_full_range(tmp_path, ending):
    image = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))
    assert load_one(tmp_path, image, ending)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_and_black_and_white_get_three_equal_channels(tmp_path):
    assert load_one(tmp_path, Image.new("L", (1, 1), 77), ".png").tolist() == [[[77, 77, 77]]]
    assert load_one(tmp_path, Image.new("1", (1, 1), 1), ".bmp").tolist() == [[[255, 255, 255]]]


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert load_one(tmp_path, image, ".tif")[0, 0].tolist() == [255, 0, 0]
    red, green, blue = load_one(tmp_path, image, ".jpg")[0, 0]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_black_and_a_white_are_refused(tmp_path, mode):
    with pytest.raises(ValueError, match=rf"picture\.tif .* 32-bit numbers \(mode {mode}\)"):
        load_one(tmp_path, Image.new(mode, (2, 2), 5), ".tif")


@pytest.mark.parametrize("keep", [0, 20, 200])
def test_a_broken_image_is_named(tmp_path, keep):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    save(tmp_path / "a" / "bad.png", Image.fromarray(pixels))
    save(tmp_path / "b" / "good.png")
    bad = tmp_path / "a" / "bad.png"
    bad.write_bytes(bad.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a/bad\.png cannot be read .* repair, convert or remove"):
        ImageFolderSource(tmp_path).load(0)


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "caf\udce9.png", format="png")
    with pytest.raises(ValueError, match=r"b/caf\\udce9\.png' is not valid UTF-8: rename it"):
        ImageFolderSource(tmp_path)
