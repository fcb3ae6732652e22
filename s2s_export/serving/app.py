"""The web application: all formats on one port.

Around every endpoint: the body is read within limits of bytes and time, the key is checked, the client is watched (one
that leaves cancels its work), errors get their format's shape, and the answer is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib
import json
import logging
import pkgutil
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import S2SError, is_failure
from . import formats, telemetry
from .calls import Call, Endpoint, Format, State, plain_error
from .failures import CODES, Failure, Refused, failure_of
from .jobs import Overloaded
from .translating import priority

log = logging.getLogger("s2s.serving")
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def all_formats() -> list[Format]:
    """Every format, found by listing formats/."""
    names = sorted(info.name for info in pkgutil.iter_modules(formats.__path__) if not info.name.startswith("_"))
    return [importlib.import_module(f"{formats.__name__}.{name}").FORMAT for name in names]


def make_app(state: State, *, cors_origins: Sequence[str] = ()) -> ASGIApp:
    """The application over loaded models. Its lifespan ends with the batchers closed."""
    known = all_formats()
    routes: list[BaseRoute] = []
    for each in known:
        for endpoint in each.endpoints:
            routes.append(Route(endpoint.path, _endpoint(state, each, endpoint), methods=[endpoint.method]))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        state.status = "draining"
        await asyncio.to_thread(state.models.close, state.limits.drain_timeout)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: f"there is nothing at {request.url.path[:100]}", 405: f"{request.method} is not allowed here"}
        message = f"{what.get(error.status_code, error.detail)}; see the list of routes at /openapi.json"
        failure = Failure(error.status_code, message, CODES.get(error.status_code, "error"), dict(error.headers or {}))
        return owner(known, request.url.path).error(failure)

    app: ASGIApp = Starlette(routes=_by_path(routes), lifespan=lifespan, exception_handlers={HTTPException: refuse})
    app = Guard(app, state, known)
    if cors_origins:
        app = CORSMiddleware(app, allow_origins=list(cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"])
    return app


def _by_path(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """Paths without places for names first, so that none is hidden."""
    return sorted(routes, key=lambda route: "{" in getattr(route, "path", ""))


def owner(known: Sequence[Format], path: str) -> Format:
    """The format in whose shape errors at a path are told: the one with the longest prefix."""
    fitting = [(len(prefix), each) for each in known for prefix in each.prefixes if path.startswith(prefix)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else PLAIN


PLAIN = Format("plain", (), (), plain_error)


def _endpoint(state: State, of: Format, endpoint: Endpoint) -> Any:
    async def answer(request: Request) -> Response:
        request.scope["s2s.route"] = endpoint.path
        try:
            call = Call(request, await request.body(), state, request.scope["s2s.arrived"], _timeout(request, state))
            if not endpoint.is_open:
                require_key(call, of)
            if endpoint.decodes:
                require_time(call)
            return await asyncio.wait_for(endpoint.handler(call), call.timeout + 1.0)
        except asyncio.TimeoutError:
            failure = Failure(504, f"the request took longer than the {call.timeout:g} seconds allowed", "timeout")
        except BaseException as error:
            if not is_failure(error) or isinstance(error, (asyncio.CancelledError, HTTPException)):
                raise
            if not isinstance(error, S2SError):
                log.exception("an error that is no bad input")
            failure = failure_of(error)
        if failure.status != 404:
            state.metrics.on_refusal(failure.code)
        return of.error(failure)

    return answer


def require_key(call: Call, of: Format) -> None:
    """Compares keys in constant time. Raises Refused."""
    known = call.state.api_keys
    if not known:
        return
    given = of.keys(call)
    matches = [hmac.compare_digest(key.encode(), one.encode()) for key in given for one in known]
    if any(matches):
        return
    if not given:
        raise Refused(of.no_key, "this server asks for an API key, and the request has none", "no_api_key")
    raise Refused(of.wrong_key, "the API key is not one of this server's; ask its owner for one", "wrong_api_key")


def require_time(call: Call) -> None:
    """Refuse a request before it is looked into, where each model that may be meant has too much to do: an overload of
    many requests is then answered in a third of the time. Raises Overloaded, and Refused for a wrong priority.
    """
    named = call.path.get("model")
    models = [model for model in call.state.models if named in (None, model.name) and model.session.speech is None]
    wanted = priority(call)
    for model in models:
        try:
            model.batcher.require_time(wanted)
        except Overloaded:
            if model is models[-1]:
                raise
        else:
            return


def _timeout(request: Request, state: State) -> float:
    """Seconds that a request may take: what its header X-Request-Timeout says, at most the server's limit."""
    value = request.headers.get("x-request-timeout")
    if value is None:
        return state.limits.timeout
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise Refused(400, f"X-Request-Timeout is {value[:20]!r}; expected seconds above 0")
    return min(seconds, state.limits.timeout)


class Guard:
    """Reads bodies within limits, ends the work of clients that left, adds headers, and counts answers."""

    def __init__(self, app: ASGIApp, state: State, known: Sequence[Format]) -> None:
        self._app = app
        self._state = state
        self._known = known
        speaking = [model.name for model in state.models if model.session.speech is not None]
        self._audio_paths = {
            each.path.replace("{model}", name)
            for of in known
            for each in of.endpoints
            if each.takes_audio
            for name in (speaking if "{model}" in each.path else [""])
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["s2s.arrived"] = begin = time.monotonic()
        answered: list[int] = []

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append(message["status"])
                named = {name.lower() for name, _ in message["headers"]}
                more = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items() if k.lower().encode() not in named]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        with telemetry.request(scope["method"], Headers(scope=scope)) as span:
            try:
                body = await self._body(scope, receive)
                if body is None:
                    return  # the client left
                await self._answer(scope, body, receive, tell)
            except Refused as error:
                failure = failure_of(error)
                self._state.metrics.on_refusal(failure.code)
                response = owner(self._known, scope["path"]).error(failure)
                response.headers["Connection"] = "close"  # what is left of the body is not read
                await response(scope, receive, tell)
            finally:
                seconds = time.monotonic() - begin
                self._answered(scope, answered[0] if answered else 499, seconds, span)

    def _answered(self, scope: Scope, status: int, seconds: float, span: telemetry.Nothing) -> None:
        """Count and log an answer."""
        route = scope.get("s2s.route", "other")
        self._state.metrics.on_answer(route, status, seconds)
        telemetry.answered(span, scope["method"], route, status)
        log.info(
            json.dumps({"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 4)})
        )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        limits = self._state.limits
        kind = dict(scope["headers"]).get(b"content-type", b"")
        brings_sound = scope["path"] in self._audio_paths or kind.startswith(b"audio/")
        limit = limits.max_audio if brings_sound else limits.max_body
        too_large = Refused(413, f"the body is larger than the {limit} bytes that this server takes; send it in parts")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise too_large
        parts, n = [], 0
        deadline = time.monotonic() + self._state.limits.body_timeout
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise Refused(408, "the body did not arrive in time; send it faster, or less of it") from None
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            n += len(parts[-1])
            if n > limit:
                raise too_large
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        left = asyncio.Event()
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if not replayed:
                replayed = True
                return {"type": "http.request", "body": body, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        work, watcher = asyncio.ensure_future(self._app(scope, replay, send)), asyncio.ensure_future(watch())
        try:
            await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            for task in (work, watcher):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
