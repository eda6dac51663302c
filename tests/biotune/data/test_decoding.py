"""What is in an image file, as a viewer shows it; and what cannot be used, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biotune.data.decoding import UnusableImageError, decode, readable_endings


def decoded(folder: Path, image: Image.Image, ending: str, **options: object) -> np.ndarray:
    image.save(folder / f"picture{ending}", **options)
    loaded = decode(folder / f"picture{ending}", "white")
    assert loaded.dtype == np.uint8
    assert loaded.shape[2:] == (3,)
    return loaded


def test_the_rotation_of_the_camera_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 8, 1))  # the sensor's first row
    exif = Image.Exif()
    exif[0x0112] = 6  # "row 0 is the right-hand side"
    loaded = decoded(tmp_path, image, ".png", exif=exif)
    assert loaded.shape == (8, 4, 3)
    assert loaded[:, 3].min() == 255
    assert loaded[:, :3].max() == 0


@pytest.mark.parametrize(
    ("background", "seen"),
    [("white", [255, 255, 255]), ("black", [0, 0, 0]), ("#0a141e", [10, 20, 30])],
)
def test_transparency_is_laid_on_the_background(tmp_path, background, seen):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.save(tmp_path / "1.png")
    assert decode(tmp_path / "1.png", background).tolist() == [[[255, 0, 0], seen]]


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path):
    Image.new("LA", (1, 1), (0, 51)).save(tmp_path / "1.png")
    assert decode(tmp_path / "1.png", "white").tolist() == [[[204, 204, 204]]]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.putpixel((1, 0), 1)
    loaded = decoded(tmp_path, image, ".png", transparency=transparency)
    assert loaded.tolist() == [[[0, 0, 255], [255, 255, 255]]]


def test_a_palette_becomes_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decoded(tmp_path, image, ".png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("ending", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_is_scaled_from_its_full_range(tmp_path, ending):
    image = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))
    assert decoded(tmp_path, image, ending)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_and_black_and_white_get_three_equal_channels(tmp_path):
    assert decoded(tmp_path, Image.new("L", (1, 1), 77), ".png").tolist() == [[[77, 77, 77]]]
    assert decoded(tmp_path, Image.new("1", (1, 1), 1), ".bmp").tolist() == [[[255, 255, 255]]]


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decoded(tmp_path, image, ".tif")[0, 0].tolist() == [255, 0, 0]
    red, green, blue = decoded(tmp_path, image, ".jpg")[0, 0]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_black_and_a_white_are_refused(tmp_path, mode):
    with pytest.raises(UnusableImageError, match=rf"32-bit numbers \(mode {mode}\)"):
        decoded(tmp_path, Image.new(mode, (2, 2), 5), ".tif")


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_what_the_file_holds_counts_and_not_its_ending(tmp_path, format_name):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "1.bmp", format=format_name)
    assert decode(tmp_path / "1.bmp", "white").shape == (2, 3, 3)


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "1.tif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "1.tif", "white")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", [".png", ".jpg"])
@pytest.mark.parametrize("keep", [20, 300])
def test_a_truncated_file_is_unusable(tmp_path, keep, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"1{ending}")
    whole = (tmp_path / f"1{ending}").read_bytes()
    assert len(whole) > 400
    (tmp_path / f"1{ending}").write_bytes(whole[:keep])
    with pytest.raises(UnusableImageError, match=r"damaged|no image that can be read"):
        decode(tmp_path / f"1{ending}", "white")


def test_an_empty_file_a_text_and_a_link_to_nothing_are_told_apart(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<html>404 Not Found</html>")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name, reason in (
        ("empty.png", "the file is empty"),
        ("text.png", "the file is no image that can be read"),
        ("link.png", "a link to nothing"),
        ("missing.png", "no such file"),
    ):
        with pytest.raises(UnusableImageError, match=f"^{reason}$"):
            decode(tmp_path / name, "white")


@pytest.mark.parametrize("limit", [99, 40])
def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch, limit):
    Image.new("1", (10, 10)).save(tmp_path / "1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow warns above, and raises at twice
    with pytest.raises(UnusableImageError, match=f"more than {limit} pixels: make it smaller"):
        decode(tmp_path / "1.png", "white")


def test_a_real_bomb_is_refused_before_its_pixels_are_made(tmp_path):
    Image.new("1", (30_000, 3_000)).save(tmp_path / "1.png")
    assert (tmp_path / "1.png").stat().st_size < 30_000
    with pytest.raises(UnusableImageError, match="more than 89,478,485 pixels"):
        decode(tmp_path / "1.png", "white")


def test_endings_are_those_of_formats_that_can_be_decoded():
    assert {".jpg", ".jpeg", ".png", ".tif", ".webp", ".bmp", ".gif"} <= readable_endings()
    assert not {".txt", ".h5", ".pdf", ".eps", ".mpg"} & readable_endings()
