"""The one resize, and the normalisation, used in preparing, training and the exported network.

Both are plain tensor functions with nothing that depends on the data, so that
``torch.onnx.export(dynamo=True)`` takes them with dynamic batch, height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


# Grey levels; the two differ by less than 1e-4 of them.
_ABOVE_HALF = 1 / 512


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bring images to ``size`` × ``size`` pixels. The whole image is kept: it is stretched.

    Antialiased bilinear interpolation in float32, rounded to whole numbers (halves down): the same
    values that an 8-bit image file would hold, so that a network sees the same pixels from
    ``images.npy`` and from the resize inside its exported graph. Images of that size already come
    back unchanged.

    Args:
        images: uint8 ``[N, H, W, 3]``, 0 to 255.
        size: height and width of the result in pixels, at least 1.

    Returns:
        float32 ``[N, 3, size, size]``, whole numbers from 0 to 255.

    Raises:
        ValueError: for another type or shape, or a size below 1.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images must be uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}"
        )
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    # Contiguous, because torch resizes channels_last maps at half the speed.
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    resized = torch.nn.functional.interpolate(
        pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    # Halves are common (images are often scaled by a simple ratio), and which side of one a sum
    # falls to differs between torch and ONNX Runtime. Just above the half no value lies by rule.
    return (resized + (0.5 - _ABOVE_HALF)).floor().clamp(0, 255)


def normalise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Scale pixels to what a pretrained network was trained on: ``(pixels / 255 - mean) / std``.

    Args:
        pixels: floats ``[N, 3, S, S]`` from 0 to 255, as :func:`resize` returns them.
        mean: of each channel, in units of 0 to 1.
        std: of each channel, in units of 0 to 1, positive.

    Returns:
        float32 ``[N, 3, S, S]``.

    Raises:
        ValueError: if mean and std are not three numbers each, or a std is not positive.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"mean and std need a number for each of 3 channels, std positive; "
            f"got mean {list(mean)} and std {list(std)}"
        )
    means = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
    stds = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.to(torch.float32) / 255 - means) / stds
