"""The one resize and the normalisation, in torch and inside an exported graph."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from biotune.data.transforms import normalise, resize


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_resize_gives_whole_numbers_in_range():
    resized = resize(noise(2, 50, 37, 3), 24)
    assert resized.dtype == torch.float32
    assert resized.shape == (2, 3, 24, 24)
    assert torch.equal(resized, resized.round())
    assert resized.min() >= 0
    assert resized.max() <= 255


def test_resize_leaves_images_of_that_size_unchanged():
    images = noise(3, 33, 33, 3)
    assert torch.equal(resize(images, 33), images.permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("height_and_width", [(200, 90), (20, 31), (48, 48)])
def test_resize_agrees_with_torchvision_to_one_level(height_and_width):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    images = noise(2, *height_and_width, 3)
    expected = functional.resize(images.permute(0, 3, 1, 2), [48, 48], antialias=True)
    assert (resize(images, 48) - expected.float()).abs().max() <= 1


def test_resizing_images_one_by_one_or_together_is_the_same():
    images = noise(4, 40, 30, 3)
    together = resize(images, 16)
    assert torch.equal(together, torch.cat([resize(image[None], 16) for image in images]))


@pytest.mark.parametrize("images", [noise(4, 4, 3), noise(1, 4, 4, 4), noise(1, 4, 4, 3).float()])
def test_resize_refuses_other_shapes_and_types(images):
    with pytest.raises(ValueError, match=r"uint8 \[N, H, W, 3\], got"):
        resize(images, 8)


def test_resize_refuses_a_size_below_one():
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        resize(noise(1, 4, 4, 3), 0)


def test_normalise_scales_each_channel_to_its_mean_and_std():
    pixels = torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    result = normalise(pixels, mean=[0.0, 0.5, 0.5], std=[1.0, 0.5, 0.25])
    assert result.dtype == torch.float32
    assert result[1, :, 2, 2].tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5]), ([0.5] * 3, [0.5, 0.0, 0.5])])
def test_normalise_refuses_bad_statistics(mean, std):
    with pytest.raises(ValueError, match="each of 3 channels, std positive"):
        normalise(torch.zeros(1, 3, 2, 2), mean, std)


class Preprocess(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return normalise(resize(image, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_onnx_runtime_agrees_at_any_batch_height_and_width(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    dynamic = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not ours
        torch.onnx.export(
            Preprocess().eval(),
            (noise(2, 40, 56, 3),),
            tmp_path / "graph.onnx",
            dynamo=True,
            dynamic_shapes=(dynamic,),
            input_names=["image"],
            opset_version=20,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(
        tmp_path / "graph.onnx", providers=["CPUExecutionProvider"]
    )
    level = 1 / 255 / 0.224
    # Most of these ratios are simple, and give many values half-way between two levels.
    for shape in [(1, 20, 20), (3, 100, 64), (2, 32, 32), (4, 64, 128), (4, 8, 8), (2, 48, 40)]:
        images = noise(*shape, 3)
        (result,) = session.run(None, {"image": images.numpy()})
        difference = np.abs(result - Preprocess()(images).numpy())
        assert difference.max() < 0.1 * level, shape
