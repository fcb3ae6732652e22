"""Traces by OpenTelemetry: which spans a request has, whose children they are, and that nothing needs the package."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time

import pytest

from s2s_export.serving import telemetry

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ASKED = {"q": "half past three", "source": "en", "target": "fr"}


@pytest.fixture
def spans(monkeypatch):
    """What was told since the last call, by name, once a request has ended: that is after its answer."""
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry is not installed: pip install opentelemetry-sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", lambda: provider.get_tracer("test"))

    def told():
        deadline, found = time.monotonic() + 20, {}
        while not any(span.name.startswith("POST ") for span in exporter.get_finished_spans()):
            assert time.monotonic() < deadline, "no request has ended"
            time.sleep(0.005)
        for span in exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        exporter.clear()
        return found

    yield told
    provider.shutdown()


def test_a_request_has_spans_of_its_parts_within_the_clients_trace(served, spans):
    answer = served.post("/translate", ASKED, traceparent=f"00-{TRACE}-{PARENT}-01")
    assert answer.json() == {"translatedText": "trois heures et demie"}
    found = spans()
    assert set(found) == {"POST /translate", "tokenise", "queue", "encode", "decode"}
    [request] = found["POST /translate"]
    assert f"{request.context.trace_id:032x}" == TRACE and f"{request.parent.span_id:016x}" == PARENT
    assert request.attributes["http.route"] == "/translate" and request.attributes["http.response.status_code"] == 200
    parts = [span for name, several in found.items() if name != "POST /translate" for span in several]
    assert all(span.parent.span_id == request.context.span_id for span in parts)
    [queue], [encode], [decode] = found["queue"], found["encode"], found["decode"]
    assert request.start_time <= queue.start_time <= queue.end_time == pytest.approx(encode.start_time, abs=1000)
    assert encode.start_time <= encode.end_time == pytest.approx(decode.start_time, abs=1000)
    assert decode.start_time < decode.end_time <= request.end_time + 1_000_000
    assert queue.attributes["s2s.source_tokens"] > 3
    shown = json.dumps([[span.name, dict(span.attributes)] for several in found.values() for span in several])
    assert "half past" not in shown


def test_without_a_header_a_request_begins_a_trace_and_errors_are_told(served, spans):
    answer = served.post("/translate", {**ASKED, "q": ["one", "two"], "source": "auto"})
    assert answer.status == 200
    found = spans()
    assert len(found["detect"]) == len(found["tokenise"]) == len(found["queue"]) == len(found["decode"]) == 2
    assert found["POST /translate"][0].parent is None
    assert served.post("/translate", {**ASKED, "target": "zz"}).status == 400
    [request] = spans()["POST /translate"]
    assert request.attributes["http.response.status_code"] == 400 and request.status.is_unset


def test_a_stream_is_one_request(served, spans):
    served.post("/v1/s2s/generate", {"text": "21st", "target_lang": "fr", "stream": True}).events()
    found = spans()
    [request], [decode] = found["POST /v1/s2s/generate"], found["decode"]
    assert decode.parent.span_id == request.context.span_id and decode.end_time <= request.end_time + 1_000_000


def test_a_wrong_parent_is_passed_over(served, spans):
    assert served.post("/translate", ASKED, traceparent="00-nonsense").status == 200
    assert spans()["POST /translate"][0].parent is None


SENT = """
from s2s_export.serving import telemetry
assert telemetry.export_spans() is None
with telemetry.request("GET", {}) as span:
    telemetry.answered(span, "GET", "/health", 200)
telemetry.trace.get_tracer_provider().shutdown()
"""


def test_spans_are_sent_to_the_collector_that_the_environment_names(monkeypatch):
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http",
        reason="the exporter is not installed: pip install opentelemetry-exporter-otlp-proto-http",
    )
    bodies = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        done = subprocess.run([sys.executable, "-c", SENT], capture_output=True, text=True, timeout=60)
        collector.shutdown()
    assert done.returncode == 0, done.stderr
    [(path, body)] = bodies
    assert path == "/v1/traces" and b"GET /health" in body and b"s2s" in body


BLOCKED = """
import sys
sys.modules["opentelemetry"] = None
from s2s_export.serving import telemetry
assert telemetry.trace is None and telemetry.tracer() is None
with telemetry.request("GET", {}) as span, telemetry.part("tokenise", n=1):
    telemetry.answered(span, "GET", "/", 500)
telemetry.begin("queue").end()
telemetry.follow(None, None)
print(telemetry.export_spans())
"""


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:4318"])
def test_nothing_is_traced_where_it_is_not_installed(endpoint, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("pip install 's2s-export[telemetry]'" in done.stdout) == bool(endpoint)
