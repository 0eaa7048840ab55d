"""What the server tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

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
    """The figures of one server, apart from those of others in the process; the batcher's observer.

    ``labels``, such as which of several replicas this is, are put to every figure in ``text``.
    """

    def __init__(self) -> None:
        self.collectors = CollectorRegistry()
        self.labels: dict[str, str] = {}
        here = {"registry": self.collectors}
        ProcessCollector(**here)
        GCCollector(**here)
        own = {"namespace": "cad_fast", **here}
        self.queued = Gauge("queue_pictures", "pictures that wait", **own)
        self.running = Gauge("running_pictures", "pictures in the batch", **own)
        self.requests = Counter("requests", "image requests by outcome", ["outcome"], **own)
        self.rejections = Counter("rejections", "image requests turned away, by reason", ["reason"], **own)
        self.pictures = Counter("pictures", "pictures drawn", **own)
        self.edit_uses = Counter("edit_uses", "requests that used an edit", ["edit"], **own)
        self.waited = Histogram("queue_seconds", "how long pictures waited", buckets=SECONDS, **own)
        self.seconds = Histogram(
            "request_seconds", "image requests, from the body to the pictures", buckets=SECONDS, **own
        )
        self.passes = Histogram("pass_seconds", "passes by part of the pipeline", ["part"], buckets=SECONDS, **own)
        self.batch_pictures = Histogram("batch_pictures", "pictures per denoiser pass", buckets=SIZES, **own)
        self.batch_rows = Histogram("batch_rows", "rows per denoiser pass", buckets=SIZES, **own)
        self.batch_edits = Histogram("batch_edits", "different edits per denoiser pass", buckets=(0, *SIZES), **own)

    def on_pass(self, part: str, pictures: int, rows: int, edits: int, seconds: float) -> None:
        """One pass was made."""
        self.passes.labels(part).observe(seconds)
        if part == "denoiser":
            self.batch_pictures.observe(pictures)
            self.batch_rows.observe(rows)
            self.batch_edits.observe(edits)

    def on_load(self, queued: int, running: int) -> None:
        """So many pictures wait, and so many are being drawn."""
        self.queued.set(queued)
        self.running.set(running)

    def on_start(self, waited: float) -> None:
        """A picture left the queue after so many seconds."""
        self.waited.observe(waited)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(_Labelled(self.collectors, self.labels))


class _Labelled:
    """A registry's figures with labels added."""

    def __init__(self, registry: CollectorRegistry, labels: dict[str, str]) -> None:
        self._registry, self._labels = registry, labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [each._replace(labels={**self._labels, **each.labels}) for each in metric.samples]
            yield metric
