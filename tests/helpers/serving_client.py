"""A server on loopback in this process, and requests to it with nothing but http.client."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from s2s_export.serving.calls import State
from s2s_export.serving.limits import Limits
from s2s_export.serving.metrics import Metrics
from s2s_export.serving.models import Models, open_models
from s2s_export.serving.server import Address, Server, listen, make_server
from s2s_export.serving.wyoming.server import WyomingServer


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of server-sent events."""
        parts = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n") if part]
        return [part if part == "[DONE]" else json.loads(part) for part in parts]


@dataclass
class Served:
    """A running server. state: what it shares with its requests, which a test may look at. wyoming: that port."""

    host: str
    port: int
    state: State
    server: Server
    wyoming: int | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            raw = body.encode() if isinstance(body, str) else body
            connection.request(method, path, raw, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        """Send JSON."""
        more = {name.replace("_", "-"): text for name, text in headers.items()}
        return self.request("POST", path, json.dumps(value), {"Content-Type": "application/json", **more})

    def form(self, path: str, **fields: Any) -> Answer:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", path, urlencode(fields, doseq=True), kind)


@contextlib.contextmanager
def serving(
    models: Models | list[str],
    *,
    limits: Limits | None = None,
    api_keys: tuple[str, ...] = (),
    wyoming: bool = False,
    **opening: Any,
) -> Iterator[Served]:
    """models: open ones, or bundles as `s2s serve` takes them. wyoming: whether a port for voice assistants is open."""
    metrics = Metrics()
    if not isinstance(models, Models):
        models = open_models(models, on_batch=metrics.on_batch, **opening)
    metrics.watch(models)
    state = State(models, limits or Limits(drain_delay=0.0, drain_timeout=10.0), metrics, api_keys)
    address = Address(port=0)
    listening = listen(address)
    beside = WyomingServer(state, listen(address)) if wyoming else None
    server = make_server(state, address, beside=beside)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        port = listening.getsockname()[1]
        yield Served(address.host, port, state, server, None if beside is None else beside.port)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
