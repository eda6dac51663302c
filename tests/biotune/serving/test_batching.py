"""The queue in front of a model, with a model that a test can hold up."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from biotune.data.decoding import UnusableImageError
from biotune.deployment.predictor import Predictor
from biotune.serving.batching import Batcher, QueueFullError
from biotune.serving.limits import Limits
from biotune.serving.metrics import Metrics

Image = NDArray[np.uint8]


class HeldModel:
    """Content b"3" is an image of height 3. It computes nothing before ``go`` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)

    def decode(self, content: bytes, max_pixels: int) -> Image:
        if not content.isdigit():
            raise UnusableImageError("no image")
        return np.zeros((int(content), 1, 3), np.uint8)

    def cost(self, height: int, width: int) -> int:
        return height * width

    def probabilities(self, images: Sequence[Image]) -> NDArray[np.float32]:
        self.batches.append([len(image) for image in images])
        self.begun.release()
        assert self.go.wait(30)
        if len(images[0]) == 13:
            raise RuntimeError("out of memory")
        return np.array([[len(image)] for image in images], np.float32)


@contextmanager
def running(model: HeldModel, **limits: Any) -> Iterator[Batcher]:
    small = {"queue": 16, "max_files": 8, "max_wait": 5.0, "decoders": 2, **limits}
    batcher = Batcher(cast("Predictor", model), Limits(**small), Metrics())
    batcher.start()
    try:
        yield batcher
    finally:
        model.go.set()
        batcher.stop()


def values(answers: Sequence[Future[NDArray[np.float32]]]) -> list[float]:
    return [float(answer.result(timeout=30)[0]) for answer in answers]


def held(batcher: Batcher, model: HeldModel) -> Future[NDArray[np.float32]]:
    """Keep the model busy with one image, so that what follows has to wait."""
    (first,) = batcher.submit([b"9"])
    assert model.begun.acquire(timeout=30)
    return first


def test_what_waits_is_computed_together_by_size_oldest_first() -> None:
    model = HeldModel()
    with running(model, decoders=1) as batcher:
        held(batcher, model)
        first = batcher.submit([b"2", b"5", b"2"])
        second = batcher.submit([b"5", b"2"])
        model.go.set()
        assert values([*first, *second]) == [2, 5, 2, 5, 2]
    assert model.batches == [[9], [2, 2, 2], [5, 5]]


def test_a_batch_has_no_more_images_or_pixels_than_allowed() -> None:
    model = HeldModel()
    with running(model, decoders=1, max_batch=3, max_pixels=14) as batcher:
        held(batcher, model)
        answers = batcher.submit([b"2"] * 4 + [b"7"] * 3)
        model.go.set()
        assert values(answers) == [2.0] * 4 + [7.0] * 3
    assert model.batches == [[9], [2, 2, 2], [2], [7, 7], [7]]


def test_an_image_that_is_alone_does_not_wait() -> None:
    model = HeldModel()
    model.go.set()
    with running(model, max_wait=1000.0) as batcher:
        assert values(batcher.submit([b"4"])) == [4]


def test_more_than_the_queue_takes_is_refused_as_a_whole() -> None:
    model = HeldModel()
    with running(model, queue=8) as batcher:
        first = held(batcher, model)
        waiting = batcher.submit([b"1"] * 5)
        with pytest.raises(QueueFullError):
            batcher.submit([b"1"] * 3)
        more = batcher.submit([b"1"] * 2)
        assert batcher.waiting == 8
        assert not batcher.room()
        model.go.set()
        assert values([first, *waiting, *more]) == [9, *[1] * 7]
    assert batcher.waiting == 0


def test_only_so_many_pixels_wait_decoded() -> None:
    model = HeldModel()
    with running(model, max_pixels=10, decoders=2, max_batch=1) as batcher:
        held(batcher, model)
        answers = batcher.submit([b"10"] * 8)
        threading.Event().wait(0.2)
        # Two are at the limit; each of the two threads may have been at one more.
        assert 2 <= len(batcher._decoded) <= 4
        model.go.set()
        assert values(answers) == [10] * 8


def test_a_broken_image_is_an_error_of_its_own() -> None:
    model = HeldModel()
    model.go.set()
    with running(model) as batcher:
        good, broken = batcher.submit([b"3", b"x"])
        assert values([good]) == [3]
        with pytest.raises(UnusableImageError, match="no image"):
            broken.result(timeout=30)


def test_a_model_that_fails_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = HeldModel()
    model.go.set()
    with running(model) as batcher:
        (failed,) = batcher.submit([b"13"])
        with pytest.raises(RuntimeError, match="out of memory"):
            failed.result(timeout=30)
        assert values(batcher.submit([b"3"])) == [3]
    assert "the model failed on a batch of 1 images" in caplog.text


def test_the_end_finishes_what_was_accepted_and_takes_no_more() -> None:
    model = HeldModel()
    with running(model) as batcher:
        first = held(batcher, model)
        waiting = batcher.submit([b"1", b"2", b"1"])
        ending = threading.Thread(target=batcher.stop)
        ending.start()
        while not batcher._stopped:
            threading.Event().wait(0.01)
        with pytest.raises(QueueFullError):
            batcher.submit([b"1"])
        model.go.set()
        ending.join(timeout=30)
        assert values([first, *waiting]) == [9, 1, 2, 1]


def test_what_nobody_waits_for_is_left_out() -> None:
    model = HeldModel()
    with running(model, max_pixels=5, decoders=1, max_batch=1) as batcher:
        held(batcher, model)
        kept = batcher.submit([b"10"])
        left = batcher.submit([b"7", b"8"])  # not decoded yet: two are waiting
        cancelled = [answer.cancel() for answer in left]
        model.go.set()
        assert values(kept) == [10]
    assert cancelled[-1]
    assert [8] not in model.batches
