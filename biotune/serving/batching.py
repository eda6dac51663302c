"""Images of many requests, decoded by a few threads and computed together by one."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from biotune.deployment.predictor import Predictor
    from biotune.serving.limits import Limits
    from biotune.serving.metrics import Metrics

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """There is no room for these images now."""


def _nothing() -> NDArray[np.uint8]:
    return np.empty((0, 0, 3), np.uint8)


@dataclass(eq=False)
class _Image:
    content: bytes
    answer: Future[NDArray[np.float32]] = field(default_factory=Future)
    pixels: NDArray[np.uint8] = field(default_factory=_nothing)


class Batcher:
    """A bounded queue in front of a model.

    A batch is the image that has waited longest and the others *of its size*, so that images of
    many sizes, in one request or in several, do not become batches of one each. It waits for more
    only while accepted images are still being decoded, and no longer than ``limits.max_wait``: an
    image that is alone is computed at once.

    Memory is bounded: of what is waiting, only about twice ``limits.max_pixels`` are decoded, and
    each decoding thread may add one image.
    """

    def __init__(self, predictor: Predictor, limits: Limits, metrics: Metrics) -> None:
        self._predictor, self._limits, self._metrics = predictor, limits, metrics
        self._changed = threading.Condition()
        self._encoded: deque[_Image] = deque()
        self._decoded: list[_Image] = []
        self._decoded_pixels = 0
        self._decoding = 0
        self._computing = 0
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._decode_all, name=f"decode-{number}", daemon=True)
            for number in range(limits.decoders)
        ]
        self._threads.append(threading.Thread(target=self._compute_all, name="model", daemon=True))

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what has been accepted, and end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def waiting(self) -> int:
        """Images accepted and not yet answered."""
        return len(self._encoded) + self._decoding + len(self._decoded) + self._computing

    def room(self, images: int = 1) -> bool:
        """Whether so many images would be accepted now."""
        return self.waiting + images <= self._limits.queue

    def submit(self, contents: Sequence[bytes]) -> list[Future[NDArray[np.float32]]]:
        """Accept the images of one request, all of them or none.

        Args:
            contents: of image files.

        Returns:
            For each, what will be its probabilities [classes], or an ``UnusableImageError`` with
            the reason, or the error with which the model failed.

        Raises:
            QueueFullError: if they do not fit into the queue.
        """
        images = [_Image(content) for content in contents]
        with self._changed:
            if self._stopped or not self.room(len(images)):
                raise QueueFullError
            self._encoded.extend(images)
            self._changed.notify_all()
        return [image.answer for image in images]

    def _decode_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._may_decode() or self._all_taken())
                if self._all_taken():
                    return
                image = self._encoded.popleft()
                self._decoding += 1
            wanted = image.answer.set_running_or_notify_cancel()
            error = self._decode(image) if wanted else None
            with self._changed:
                self._decoding -= 1
                if wanted and error is None:
                    self._decoded.append(image)
                    self._decoded_pixels += image.pixels.size // 3
                self._changed.notify_all()
            if error is not None:
                image.answer.set_exception(error)
            del image  # not to be held while this thread waits for the next

    def _may_decode(self) -> bool:
        return bool(self._encoded) and self._decoded_pixels < 2 * self._limits.max_pixels

    def _all_taken(self) -> bool:
        return self._stopped and not self._encoded

    def _decode(self, image: _Image) -> Exception | None:
        try:
            image.pixels = self._predictor.decode(image.content, self._limits.max_pixels)
        except Exception as error:
            return error
        finally:
            image.content = b""  # what is decoded needs no more memory than its pixels
        return None

    def _compute_all(self) -> None:
        while batch := self._next_batch():
            rows = self._compute(batch)
            with self._changed:  # before the answers, so that who has one finds the queue shorter
                self._computing = 0
                self._changed.notify_all()
            _hand_out(batch, rows)
            del batch  # not to be held while this thread waits for the next

    def _compute(self, batch: list[_Image]) -> NDArray[np.float32] | Exception:
        begin = time.perf_counter()
        try:
            rows = self._predictor.probabilities([image.pixels for image in batch])
        except Exception as error:
            logger.exception("the model failed on a batch of %d images", len(batch))
            return error
        self._metrics.computed(len(batch), time.perf_counter() - begin)
        return rows

    def _next_batch(self) -> list[_Image]:
        with self._changed:
            self._changed.wait_for(lambda: self._decoded or self._finished())
            if not self._decoded:
                return []
            self._changed.wait_for(
                lambda: len(self._alike()) >= self._limits.max_batch or not self._on_their_way(),
                timeout=self._limits.max_wait,
            )
            batch = self._alike()
            taken = set(batch)
            self._decoded = [image for image in self._decoded if image not in taken]
            self._decoded_pixels -= sum(image.pixels.size // 3 for image in batch)
            self._computing = len(batch)
            self._changed.notify_all()
            return batch

    def _on_their_way(self) -> bool:
        return bool(self._encoded) or self._decoding > 0

    def _finished(self) -> bool:
        return self._stopped and not self._on_their_way()

    def _alike(self) -> list[_Image]:
        shape = self._decoded[0].pixels.shape
        height, width, _ = shape
        cost = self._predictor.cost(height, width)
        most = max(1, min(self._limits.max_batch, self._limits.max_pixels // cost))
        return [image for image in self._decoded if image.pixels.shape == shape][:most]


def _hand_out(batch: list[_Image], rows: NDArray[np.float32] | Exception) -> None:
    for number, image in enumerate(batch):
        if isinstance(rows, Exception):
            image.answer.set_exception(rows)
        else:
            image.answer.set_result(rows[number])
