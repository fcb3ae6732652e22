"""A request as the formats see it, and what a format is.

A format is a file in formats/ with `FORMAT`, found by listing the directory: its endpoints, the shape of its errors,
and where its clients put their key. An endpoint is a coroutine that takes a `Call` and returns a response; it raises
errors of this package, which are turned into the format's shape in one place (app.py).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import MissingExtra
from .failures import Failure, Refused
from .limits import Limits
from .metrics import Metrics
from .models import Models

DEEPEST = 200  # levels of nesting of a JSON body; Python's own reader gives up at about a thousand


@dataclass
class State:
    """What all requests share. status: "loading", "ready" or "draining". api_keys: empty if anybody may ask."""

    models: Models
    limits: Limits
    metrics: Metrics
    api_keys: tuple[str, ...] = ()
    status: str = "ready"


@dataclass
class Call:
    """A request whose body was read. timeout: seconds that are allowed for it."""

    request: Request
    body: bytes
    state: State
    arrived: float
    timeout: float
    _fields: Mapping[str, Any] | None = None

    @property
    def path(self) -> Mapping[str, Any]:
        """What stands in the places of the endpoint's path."""
        return self.request.path_params

    def json(self) -> Any:
        """The body as JSON. Raises Refused."""
        try:
            text = self.body.decode("utf-8")
            value = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON ({_short(error)}); expected a JSON object in UTF-8") from None
        return value

    def object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises Refused."""
        value = self.json()
        if not isinstance(value, dict):
            raise Refused(400, f"the body holds {_kind(value)}; expected a JSON object")
        return value

    def fields(self, *lists: str) -> Mapping[str, Any]:
        """The fields of a body in JSON or as a form. lists: those that are a list, also where a form has one value."""
        if self._fields is None:
            self._fields = self._read_fields(lists)
        return self._fields

    async def form(self) -> dict[str, list[str | bytes]]:
        """A body that is multipart/form-data: each field's values, files as bytes. Raises Refused, MissingExtra."""
        try:
            from starlette.formparsers import MultiPartException, MultiPartParser
        except ImportError as error:
            raise MissingExtra("python-multipart", "serve", "reading a form with a file") from error
        kind = self.request.headers.get("content-type", "")
        if not kind.lower().startswith("multipart/form-data"):
            raise Refused(415, f"the body is {kind[:60] or 'of no type'}; expected multipart/form-data with a file")

        async def body() -> AsyncGenerator[bytes, None]:
            yield self.body

        parser = MultiPartParser(self.request.headers, body(), max_files=4, max_fields=64, max_part_size=len(self.body))
        try:
            parsed = await parser.parse()
        except (MultiPartException, ValueError, KeyError, AssertionError) as error:
            raise Refused(400, f"the form can't be read ({_short(error)}); expected multipart/form-data") from None
        found: dict[str, list[str | bytes]] = {}
        for name, value in parsed.multi_items():
            found.setdefault(name, []).append(value if isinstance(value, str) else await value.read())
        await parsed.close()
        return found

    def _read_fields(self, lists: Sequence[str]) -> dict[str, Any]:
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            raise Refused(415, "the body is multipart/form-data; expected JSON or application/x-www-form-urlencoded")
        if not self.body.strip():
            return {}
        if kind != "application/x-www-form-urlencoded":
            return self.object()
        try:
            pairs = parse_qsl(self.body.decode("utf-8"), keep_blank_values=True, max_num_fields=10_000, errors="strict")
        except ValueError as error:
            raise Refused(400, f"the body is not a form ({_short(error)}); expected UTF-8, urlencoded") from None
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in lists:
                found.setdefault(name, []).append(value)
            else:
                found[name] = value
        return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _short(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def text_in(fields: Mapping[str, Any], name: str, default: str | None = None) -> str | None:
    """A field that holds a string. Raises Refused."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise Refused(400, f"'{name}' is {_kind(value)}; expected a string")
    return value


def texts_in(value: Any, name: str) -> list[str]:
    """A value that is a list of strings. Raises Refused."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        wrong = next((text for text in value if not isinstance(text, str)), value) if isinstance(value, list) else value
        raise Refused(400, f"'{name}' holds {_kind(wrong)}; expected strings")
    return value


def integer_in(fields: Mapping[str, Any], name: str, default: int) -> int:
    """A field that holds a whole number, also as text in a form. Raises Refused."""
    value = fields.get(name)
    if value is None:
        return default
    try:
        if (isinstance(value, (bool, float)) and value != int(value)) or isinstance(value, (bool, list, dict)):
            raise ValueError
        return int(value)
    except (ValueError, OverflowError):
        raise Refused(400, f"'{name}' is {str(value)[:60]!r}; expected a whole number") from None


def flag_in(fields: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A field that holds true or false, also as text or 0 and 1. Raises Refused."""
    value = fields.get(name)
    if value is None:
        return default
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known or isinstance(value, (list, dict)):
        raise Refused(400, f"'{name}' is {str(value)[:60]!r}; expected true or false")
    return known[str(value).lower()]


def keys_in_headers(call: Call) -> Sequence[str]:
    """`Authorization: Bearer KEY` or `DeepL-Auth-Key KEY`."""
    scheme, _, key = call.request.headers.get("authorization", "").partition(" ")
    return [key.strip()] if scheme.lower() in ("bearer", "deepl-auth-key") and key.strip() else []


Handler = Callable[[Call], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Endpoint:
    """is_open: answered without a key. takes_audio: its body may be as large as `Limits.max_audio` says, of a
    model that reads sound where its path names one. decodes: texts, so that it is refused unread where they would wait
    for too long.
    """

    method: str
    path: str
    handler: Handler
    is_open: bool = False
    takes_audio: bool = False
    decodes: bool = False


@dataclass(frozen=True)
class Format:
    """A protocol that clients speak.

    prefixes: of the paths whose errors have this format's shape, also where no endpoint answers. error: a failure in
    the format's shape. keys: the keys that a request presents. no_key, wrong_key: the status for a request without a
    key, and with a wrong one.
    """

    name: str
    endpoints: Sequence[Endpoint]
    prefixes: Sequence[str]
    error: Callable[[Failure], Response]
    keys: Callable[[Call], Sequence[str]] = keys_in_headers
    no_key: int = 401
    wrong_key: int = 401
    notes: str = field(default="", compare=False)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that every reader can read: what UTF-8 can't encode is escaped, a score that is not finite is null."""
    from ..runtime.cases import to_json

    return Response(to_json(value), status, dict(headers or {}), media_type="application/json")


def plain_error(failure: Failure) -> Response:
    """{"error": "sentence"}"""
    return JSONResponse({"error": failure.message}, failure.status, failure.headers)
