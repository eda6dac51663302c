"""An image file as the pixels that a viewer would show."""

from __future__ import annotations

import sys
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Formats that Pillow recognises and cannot decode by itself, or only by running Ghostscript.
_NOT_DECODED: Final = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class UnusableImageError(ValueError):
    """An image that cannot be used; the text is the reason, and names no file."""


def decode(file: Path, background: str) -> NDArray[np.uint8]:
    """One image as a viewer shows it.

    What the file holds counts, not its ending. The camera's rotation is applied, transparency is
    laid on the background, 16-bit grey is scaled from its full range, CMYK becomes RGB, and of
    several frames or pages the first is taken.

    Args:
        file: any of :func:`readable_endings`' formats.
        background: a colour as CSS writes it, such as ``white`` or ``#808080``.

    Returns:
        uint8 RGB ``[H, W, 3]``, 0 to 255.

    Raises:
        UnusableImageError: if there is no such file, it is empty, damaged, no image, larger than
            Pillow's limit against decompression bombs (89 million pixels), or has pixels that are
            not colours.
    """
    try:
        if file.is_fifo():  # as <(…) in a shell, which has no size and cannot be read twice
            return decode_bytes(file.read_bytes(), background)
        size = file.stat().st_size
    except FileNotFoundError as error:
        what = "a link to nothing" if file.is_symlink() else "no such file"
        raise UnusableImageError(what) from error
    except OSError as error:
        raise UnusableImageError(f"the file cannot be read ({error.strerror})") from error
    return _decode(file, size, background, None)


def decode_bytes(
    content: bytes, background: str, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """The content of an image file as a viewer shows it.

    Args:
        content: of a file.
        background: as for :func:`decode`.
        max_pixels: a limit below Pillow's own; it is checked before anything is decoded.

    Returns, Raises:
        As :func:`decode`.
    """
    return _decode(BytesIO(content), len(content), background, max_pixels)


def _decode(
    file: Path | BytesIO, size: int, background: str, max_pixels: int | None
) -> NDArray[np.uint8]:
    if size == 0:
        raise UnusableImageError("the file is empty")
    allowed = Image.MAX_IMAGE_PIXELS or sys.maxsize  # above it Pillow warns of a bomb
    limit = min(max_pixels or allowed, allowed)
    too_large = f"it has more than {limit:,} pixels: make it smaller"
    try:
        # Pillow only warns of twice the pixels that it allows; catching a warning is not safe with
        # several threads.
        with Image.open(file, formats=sorted(set(_formats_by_ending().values()))) as image:
            if image.width * image.height > limit:
                raise UnusableImageError(too_large)
            return _to_rgb(image, background)
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImageError("the file is no image that can be read") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnusableImageError(too_large) from error
    except Exception as error:
        # Pillow's decoders raise nearly anything on damaged files (OSError, SyntaxError,
        # struct.error, IndexError, …).
        raise UnusableImageError(f"the file is damaged ({error})") from error


def readable_endings() -> frozenset[str]:
    """Endings of file names that mean an image, in lower case, such as ``.jpg``."""
    return frozenset(_formats_by_ending())


@cache
def _formats_by_ending() -> dict[str, str]:
    endings = Image.registered_extensions()  # loads Pillow's plugins, which fill Image.OPEN
    readable = set(Image.OPEN) - _NOT_DECODED
    return {ending: name for ending, name in endings.items() if name in readable}


def _to_rgb(image: Image.Image, background: str) -> NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        # Pillow would clip 16-bit grey at 255, not scale it. Netpbm files with 16 bits come as "I".
        grey = (np.asarray(upright).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if mode in ("I", "F"):
        raise UnusableImageError(
            f"its pixels are 32-bit numbers (mode {mode}), and nothing says which are black and "
            "white; save it with 8 or 16 bits"
        )
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, background), upright)
    return np.asarray(upright.convert("RGB"))
