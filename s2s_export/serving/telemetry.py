"""Traces of requests by OpenTelemetry, where it is installed (the extra `telemetry`); nothing elsewhere.

    POST /translate                 the request, a child of the span that its header `traceparent` names
      tokenise, detect              the text becomes sources
      queue, encode, decode         of each source: until a batch took it, until the decoder's first step, until its end
      transcribe                    of sound

Spans go to the tracer provider of the process: that of `opentelemetry-instrument`, or that which `export_spans` makes
from OpenTelemetry's own environment variables. They hold no text and no key.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..version import __version__

try:
    from opentelemetry import context, propagate, trace
except ImportError:  # the package is not installed
    trace = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from .jobs import Job

SCOPE = "s2s_export.serving"
SERVICE = "s2s"  # unless OTEL_SERVICE_NAME says otherwise
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracer() -> Any:
    """The tracer of this server; None where OpenTelemetry is not installed."""
    return None if trace is None else trace.get_tracer(SCOPE, __version__)


def export_spans() -> str | None:
    """Send spans to the collector that OpenTelemetry's environment variables name, if they name one. Returns None where
    that is done or not asked for, else what is missing, in one sentence."""
    if not any(os.environ.get(name) for name in ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None  # opentelemetry-instrument has made one
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        return (
            f"{error.name} is not installed, so no spans are sent to the collector that the environment names; run: "
            "pip install 's2s-export[telemetry]'"
        )
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE}
    provider = TracerProvider(resource=Resource.create({"service.version": __version__, **named}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return None


class Nothing:
    """A span where nothing is traced."""

    def set(self, **attributes: Any) -> None:
        pass

    def end(self) -> None:
        pass


class Span(Nothing):
    """A span of OpenTelemetry. Attributes have dots where `set` has two underscores."""

    def __init__(self, span: Any) -> None:
        self.span = span

    def set(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            self.span.set_attribute(name.replace("__", "."), value)

    def end(self) -> None:
        self.span.end()


@contextlib.contextmanager
def request(method: str, headers: Mapping[str, str]) -> Iterator[Nothing]:
    """The span of a request. What is begun inside it is its child."""
    made = tracer()
    if made is None:
        yield Nothing()
        return
    parent = propagate.extract(headers)
    with made.start_as_current_span(method, context=parent, kind=trace.SpanKind.SERVER) as span:
        yield Span(span)


def answered(span: Nothing, method: str, route: str, status: int) -> None:
    """Name a request's span, by the conventions for HTTP."""
    span.set(http__request__method=method, http__route=route, http__response__status_code=status)
    if isinstance(span, Span):
        span.span.update_name(f"{method} {route}")
        if status >= 500:
            span.span.set_status(trace.StatusCode.ERROR)


@contextlib.contextmanager
def part(name: str, **attributes: Any) -> Iterator[Nothing]:
    """The span of a part of a request, which ends with the block."""
    span = begin(name, **attributes)
    try:
        yield span
    finally:
        span.end()


def begin(name: str, **attributes: Any) -> Nothing:
    """A part that the caller ends."""
    made = tracer()
    if made is None:
        return Nothing()
    span = Span(made.start_span(name))
    span.set(**attributes)
    return span


def follow(job: Job, clock: Callable[[], float]) -> None:
    """Tell of a job's way through the batcher, once it is settled. clock: what its times are of."""
    made = tracer()
    if made is None or not trace.get_current_span().is_recording():
        return
    parent = context.get_current()

    def tell(_: object) -> None:
        ended, wall = clock(), time.time_ns()

        def nanoseconds(moment: float) -> int:
            return wall - int((ended - moment) * 1e9)

        def span(name: str, start: float, end: float) -> None:
            found = made.start_span(name, context=parent, start_time=nanoseconds(start))
            found.set_attribute("s2s.source_tokens", job.length)
            found.end(end_time=nanoseconds(end))

        began, encoded = job.began, job.encoded
        span("queue", job.arrived, ended if began is None else began)
        if began is not None:
            span("encode", began, ended if encoded is None else encoded)
            if encoded is not None:
                span("decode", encoded, ended)

    job.future.add_done_callback(tell)
