"""Figures of a server, by Prometheus' conventions: base units, `_total` for what only grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .jobs import BatchReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .models import Models

SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    30,
    60,
)  # OpenTelemetry's, and two
SOURCES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts what happens. Each server has its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("s2s_requests_total", "Requests answered.", ["route", "code"], registry=registry)
        self._duration = Histogram(
            "s2s_request_duration_seconds", "From the first byte of a request to the last of its answer.", ["route"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._queued = Histogram(
            "s2s_queue_duration_seconds", "How long a source waited for its batch.", ["bundle"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._first = Histogram(
            "s2s_time_to_first_token_seconds", "From a streaming request to its first text.", ["bundle"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self._batch = Histogram(
            "s2s_batch_sources",
            "Sources decoded side by side: of a batch, or on average over some steps of one.",
            ["bundle"],
            registry=registry,
            buckets=SOURCES,
        )
        self._read = Counter("s2s_source_tokens_total", "Source tokens decoded.", ["bundle"], registry=registry)
        self._written = Counter("s2s_target_tokens_total", "Tokens of best outputs.", ["bundle"], registry=registry)
        self._steps = Counter("s2s_decoder_steps_total", "Decoder steps.", ["bundle"], registry=registry)
        self._joined = Counter(
            "s2s_joined_sources_total", "Sources that joined a batch that was being decoded.", ["bundle"],
            registry=registry,
        )  # fmt: skip
        self._joins = Gauge(
            "s2s_joins_batches", "Whether sources join batches that are being decoded (1), or batches are whole (0).",
            ["bundle"], registry=registry,
        )  # fmt: skip
        self._rejected = Counter("s2s_rejected_total", "Requests refused, by reason.", ["reason"], registry=registry)
        self._info = Gauge(
            "s2s_model_info", "A bundle that is served.", ["bundle", "backend", "target"], registry=registry
        )

    def watch(self, models: Models) -> None:
        """Report the queues of these models, and what they are."""
        for model in models:
            backend = model.session.backend
            self._info.labels(model.name, backend.name, str(getattr(backend, "target", None) or "portable")).set(1)
            self._joins.labels(model.name).set(model.batcher.why_whole is None)
        self.registry.register(_Queues(models))

    def on_batch(self, bundle: str, report: BatchReport) -> None:
        for seconds in report.queue_seconds:
            self._queued.labels(bundle).observe(seconds)
        self._batch.labels(bundle).observe(report.n_together)
        self._joined.labels(bundle).inc(report.n_joined)
        self._read.labels(bundle).inc(report.source_tokens)
        self._written.labels(bundle).inc(report.target_tokens)
        self._steps.labels(bundle).inc(report.steps)

    def on_answer(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def on_refusal(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def on_first_token(self, bundle: str, seconds: float) -> None:
        self._first.labels(bundle).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def figures(self, models: Models) -> dict[str, Any]:
        """A few numbers for the page."""

        def total(name: str) -> float:
            found = [s.value for metric in self.registry.collect() for s in metric.samples if s.name == name]
            return float(sum(found))

        n_batches = total("s2s_batch_sources_count")
        return {
            "requests": int(total("s2s_requests_total")),
            "waiting": sum(model.batcher.n_waiting for model in models),
            "sources": int(total("s2s_queue_duration_seconds_count")),
            "sources_per_batch": round(total("s2s_batch_sources_sum") / n_batches, 2) if n_batches else None,
            "source_tokens": int(total("s2s_source_tokens_total")),
            "target_tokens": int(total("s2s_target_tokens_total")),
        }


class _Queues:
    """Reads the queues when somebody asks."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        entries = GaugeMetricFamily("s2s_queue_entries", "Sources that wait.", labels=["bundle"])
        tokens = GaugeMetricFamily("s2s_queue_source_tokens", "Source tokens that wait.", labels=["bundle"])
        processes = GaugeMetricFamily(
            "s2s_engine_processes", "Processes that decode; 0 where the server's own does.", labels=["bundle"]
        )
        restarts = CounterMetricFamily(
            "s2s_engine_restarts", "Engine processes that ended and were started again.", labels=["bundle"]
        )
        for model in self._models:
            entries.add_metric([model.name], model.batcher.n_waiting)
            tokens.add_metric([model.name], model.batcher.n_waiting_tokens)
            processes.add_metric([model.name], model.batcher.n_processes)
            restarts.add_metric([model.name], model.batcher.n_restarts)
        yield from (entries, tokens, processes, restarts)
