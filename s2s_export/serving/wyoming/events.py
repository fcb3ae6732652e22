"""Events of the Wyoming protocol on a stream.

An event is a line of JSON, {"type": "audio-chunk", "data": {..}, "data_length": n, "payload_length": m}, then n bytes
of JSON, whose fields are added to `data`, and m bytes of sound. The lengths may be left out.
(https://github.com/OHF-Voice/wyoming; read here rather than by its package, which takes any length at its word.)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import S2SError

MOST_HEADER = 1 << 16  # bytes of a line, and of the JSON after it
MOST_PAYLOAD = 1 << 20  # bytes of sound in one event: clients send a fraction of a second


class Malformed(S2SError):
    """Bytes that are no event. What follows them can't be read either."""


@dataclass(frozen=True)
class Event:
    """data: its fields. payload: sound, where there is some."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    payload: bytes = b""


async def read(reader: asyncio.StreamReader) -> Event | None:
    """The next event, or None at the end of the stream. Raises Malformed."""
    try:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            return None  # the client left, perhaps in the middle of a line
        head = _object(line, "the line of an event")
        data = _object(head.get("data") or {}, "'data'")
        if n := _length(head, "data_length", MOST_HEADER):
            data = {**data, **_object(await reader.readexactly(n), "the data of an event")}
        n = _length(head, "payload_length", MOST_PAYLOAD)
        payload = await reader.readexactly(n) if n else b""
    except asyncio.IncompleteReadError:
        return None
    except ValueError:  # asyncio's own, of a line that is longer than its limit
        raise Malformed(f"the line of an event is longer than {MOST_HEADER} bytes; expected a short one") from None
    kind = head.get("type")
    if not isinstance(kind, str):
        raise Malformed(f"the event has the type {str(kind)[:40]!r}; expected a string such as 'describe'")
    return Event(kind, data, payload)


def write(writer: asyncio.StreamWriter, kind: str, data: Mapping[str, Any] | None = None) -> None:
    body = json.dumps(data).encode() if data else b""
    head = {"type": kind, **({"data_length": len(body)} if body else {})}
    writer.write(json.dumps(head).encode() + b"\n" + body)


def _object(value: Any, what: str) -> dict[str, Any]:
    if isinstance(value, bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Malformed(f"{what} is not JSON; expected a JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise Malformed(f"{what} is no JSON object; expected one")
    return value


def _length(head: Mapping[str, Any], name: str, most: int) -> int:
    value = head.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= most:
        raise Malformed(f"{name} is {str(value)[:40]}; expected at most {most} bytes; send sound in smaller pieces")
    return value
