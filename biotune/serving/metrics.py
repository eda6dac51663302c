"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server; label values never come from a client."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "biotune_requests", "Answered requests.", ["path", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "biotune_request_seconds",
            "From the head of a request to its whole answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._images = Counter(
            "biotune_images",
            "Images by outcome: classified, unusable, failed (the model raised an error).",
            ["outcome"],
            registry=self._registry,
        )
        self._batch_images = Histogram(
            "biotune_batch_images", "Images a batch.", buckets=_IMAGES, registry=self._registry
        )
        self._batch_seconds = Histogram(
            "biotune_batch_seconds",
            "Time that the model took for a batch.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._errors = Counter(
            "biotune_errors", "Faults of the server itself.", registry=self._registry
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Show how many images are accepted and not yet answered."""
        gauge = Gauge(
            "biotune_queue_images", "Accepted and not yet answered.", registry=self._registry
        )
        gauge.set_function(length)

    def describe_model(self, facts: Mapping[str, str]) -> None:
        """Show which model answers."""
        Info("biotune_model", "The model that answers.", registry=self._registry).info(dict(facts))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one request; ``path`` is one of ours, or ``other``."""
        self._requests.labels(path, str(status)).inc()
        self._request_seconds.labels(path).observe(seconds)
        if status == 500:
            self._errors.inc()

    def computed(self, images: int, seconds: float) -> None:
        """Count one batch."""
        self._batch_images.observe(images)
        self._batch_seconds.observe(seconds)

    def image(self, outcome: str) -> None:
        """Count one image: ``classified``, ``unusable`` or ``failed``."""
        self._images.labels(outcome).inc()

    def text(self) -> bytes:
        """All counters, in Prometheus' text format."""
        return generate_latest(self._registry)
