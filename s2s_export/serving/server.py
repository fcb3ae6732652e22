"""Sockets and signals around the application.

SIGTERM: "not ready" at once, and new requests are still answered for `drain_delay` seconds, the time that a load
balancer needs to look elsewhere; then no connection is accepted any more, and what is under way has `drain_timeout`
seconds. A second signal cuts the delay short. uvicorn ends the process by the signal, so its status is 143.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

import uvicorn

from ..errors import InvalidOption
from .app import make_app
from .calls import State
from .wyoming.server import WyomingServer

MOST_CONNECTIONS = 2048
KEEP_ALIVE = 15  # seconds


@dataclass(frozen=True)
class Address:
    """host, port: where to listen; port 0 takes a free one. certificate, key: files for TLS."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidOption("TLS needs a certificate and a key; one of them is given; give both")
        for path in (self.certificate, self.key):
            if path is not None and not os.path.isfile(path):
                raise InvalidOption(f"{path}: there is no such file; expected a certificate or key in PEM")
        if self.certificate is not None and self.key is not None:
            _check_pair(self.certificate, self.key)

    @property
    def scheme(self) -> str:
        return "https" if self.certificate else "http"


def _check_pair(certificate: str, key: str) -> None:
    """Raises InvalidOption where TLS can't begin with these files: before models are loaded, and without asking at the
    terminal for the password of a key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        why = "the key is not this certificate's" if reason == "KEY_VALUES_MISMATCH" else reason
        raise InvalidOption(
            f"{certificate}, {key}: TLS can't begin with them ({why}); expected a certificate and its key in PEM, the "
            "key without a password"
        ) from None


class Server(uvicorn.Server):
    """uvicorn's, which drains before it stops. beside: another port, served in the same event loop."""

    def __init__(
        self, config: uvicorn.Config, state: State, on_ready: Callable[[], None], beside: WyomingServer | None
    ) -> None:
        super().__init__(config)
        self._state = state
        self._on_ready = on_ready
        self._beside = beside

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            if self._beside is not None:
                await self._beside.start()
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._beside is not None:  # first: what it is at needs the models, which end with the application
            for server in self.servers:
                server.close()
            await self._beside.stop(self._state.limits.drain_timeout)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._state.status == "draining" or not self._state.limits.drain_delay:
            self._state.status = "draining"
            super().handle_exit(sig, frame)
            return
        self._state.status = "draining"
        stop = super().handle_exit
        timer = threading.Timer(self._state.limits.drain_delay, lambda: stop(sig, frame))
        timer.daemon = True
        timer.start()


def listen(address: Address) -> socket.socket:
    """A socket at the address. Raises InvalidOption where that can't be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # The protocol is named: asyncio sets TCP_NODELAY for connections of such a socket only, and without it the body of
    # an answer waits 40 ms for the client to acknowledge the head.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((address.host, address.port))
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: a name that none can be
        found.close()
        what = getattr(error, "strerror", None) or error
        is_taken = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        raise InvalidOption(
            f"can't listen at {address.host}:{address.port} ({what}); "
            + ("choose another port" if is_taken else "expected an address of this machine; 0.0.0.0 is all of them")
        ) from None
    return found


def make_server(
    state: State,
    address: Address,
    *,
    cors_origins: Sequence[str] = (),
    on_ready: Callable[[], None] = lambda: None,
    beside: WyomingServer | None = None,
) -> Server:
    """A server that `run(sockets=[listen(address)])` runs until a signal. on_ready: called once it answers."""
    config = uvicorn.Config(
        make_app(state, cors_origins=cors_origins),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(state.limits.drain_timeout)),
        limit_concurrency=MOST_CONNECTIONS,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        server_header=False,
    )
    return Server(config, state, on_ready, beside)


def log_to_stderr(as_json: bool, quiet: bool) -> None:
    """One line a request on stderr, as JSON or as text. No line holds a text, a key or a header."""

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            message = record.getMessage()
            try:
                fields = json.loads(message)
            except ValueError:
                fields = {"message": message}
            if record.exc_info:
                fields["exception"] = self.formatException(record.exc_info)
            if as_json:
                when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
                return json.dumps({"time": when, "level": record.levelname.lower(), **fields})
            return " ".join(str(value) for value in fields.values())

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    log = logging.getLogger("s2s.serving")
    log.handlers = [handler]
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False


def notify_ready() -> None:
    """Tell systemd (Type=notify) that the server answers; nothing where systemd didn't start it."""
    where = os.environ.get("NOTIFY_SOCKET")
    if not where:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + where[1:] if where.startswith("@") else where)
        out.sendall(b"READY=1")
