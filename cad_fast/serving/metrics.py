"""The metrics of a server, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The metrics of one server, separate from those of other servers in the process. It observes the batcher.

    Attributes:
        collectors: the registry of Prometheus' client.
        labels: labels of every figure, such as the name of the replica.
    """

    def __init__(self) -> None:
        self.collectors = CollectorRegistry()
        self.labels: dict[str, str] = {}
        ProcessCollector(registry=self.collectors)
        GCCollector(registry=self.collectors)
        shared: dict[str, Any] = {"namespace": "cad_fast", "registry": self.collectors}
        self.queued = Gauge("queue_pictures", "pictures that wait", **shared)
        self.running = Gauge("running_pictures", "pictures in the batch", **shared)
        self.requests = Counter("requests", "image requests by outcome", ["outcome"], **shared)
        self.rejections = Counter("rejections", "image requests turned away, by reason", ["reason"], **shared)
        self.pictures = Counter("pictures", "pictures drawn", **shared)
        self.edit_uses = Counter("edit_uses", "requests that used an edit", ["edit"], **shared)
        self.waited = Histogram("queue_seconds", "how long pictures waited", buckets=SECONDS, **shared)
        self.seconds = Histogram(
            "request_seconds", "image requests, from the body to the pictures", buckets=SECONDS, **shared
        )
        self.passes = Histogram("pass_seconds", "passes by part of the pipeline", ["part"], buckets=SECONDS, **shared)
        self.batch_pictures = Histogram("batch_pictures", "pictures per denoiser pass", buckets=SIZES, **shared)
        self.batch_rows = Histogram("batch_rows", "rows per denoiser pass", buckets=SIZES, **shared)
        self.batch_edits = Histogram("batch_edits", "different edits per denoiser pass", buckets=(0, *SIZES), **shared)

    def on_pass(self, part: str, pictures: int, rows: int, edits: int, seconds: float) -> None:
        """Count a pass of ``part`` that took ``seconds``."""
        self.passes.labels(part).observe(seconds)
        if part == "denoiser":
            self.batch_pictures.observe(pictures)
            self.batch_rows.observe(rows)
            self.batch_edits.observe(edits)

    def on_load(self, queued: int, running: int) -> None:
        """Note how many pictures wait, and how many are in the batch."""
        self.queued.set(queued)
        self.running.set(running)

    def on_start(self, waited: float) -> None:
        """Note that a picture left the queue after ``waited`` seconds."""
        self.waited.observe(waited)

    def text(self) -> bytes:
        """Write all metrics in Prometheus' text format."""
        return generate_latest(_Labelled(self.collectors, self.labels))


class _Labelled:
    """The metrics of a registry with labels added."""

    def __init__(self, registry: CollectorRegistry, labels: dict[str, str]) -> None:
        self._registry, self._labels = registry, labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [each._replace(labels={**self._labels, **each.labels}) for each in metric.samples]
            yield metric
