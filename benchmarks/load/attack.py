"""Requests that are not as they should be, beside right ones whose answers are checked: malformed bodies on all routes,
clients that disconnect at any moment, and clients that send a few bytes at a time.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass

from .client import HOST, Connection, Tally, Window, Work, send

ROUTES = (
    "/v1/s2s/generate", "/translate", "/detect", "/v2/translate", "/v1/chat/completions", "/v2/models/opus/infer",
    "/models/opus", "/v2/health/live", "/metrics", "/nothing",
)  # fmt: skip
VALUES = (None, True, -1, 0, 10**30, 1.5, "", "x", "\ud800", [], [[]], [1], ["a", 2], {}, {"a": {}})
ALLOWED = (501, 503)  # of the statuses from 500 on
KINDS = {"right": 0.4, "malformed": 0.35, "gone": 0.2, "slow": 0.05}  # shares of all requests


@dataclass
class Attacked:
    """How many of each kind there were, and what went wrong, a line each."""

    counts: dict[str, int]
    faults: list[str]
    tally: Tally


def attack(port: int, work: Work, n: int, n_clients: int, seed: int = 0) -> Attacked:
    """n requests in all by n_clients side by side."""
    return asyncio.run(_attack(port, work, n, n_clients, seed))


async def _attack(port: int, work: Work, n: int, n_clients: int, seed: int) -> Attacked:
    found = Attacked(dict.fromkeys(KINDS, 0), [], Tally())
    numbers = iter(range(n))

    async def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        connection = Connection(port)
        for i in numbers:
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            found.counts[kind] += 1
            source = work.sources[i % len(work.sources)]
            if kind == "right":
                await send(connection, work, source, found.tally, Window(0.0, float("inf")))
            elif kind == "malformed":
                await _malformed(port, work.body(source), chance, found.faults)
            elif kind == "gone":
                await _gone(port, work.body(source), chance)
            else:
                await _slow(port, work, source, chance, found.faults)
        connection.close()

    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return found


def _spoiled(body: bytes, chance: random.Random) -> bytes:
    way = chance.randrange(5)
    if way == 0:
        return body[: chance.randrange(len(body))]
    if way == 1:
        at = chance.randrange(len(body))
        return body[:at] + chance.randbytes(3) + body[at:]
    if way == 2:
        return b"[" * chance.choice([50, 5000])
    fields = json.loads(body)
    fields[chance.choice([*fields, "q", "text", "id", "stream", "num_beams"])] = chance.choice(VALUES)
    return json.dumps(fields).encode()


async def _malformed(port: int, body: bytes, chance: random.Random, faults: list[str]) -> None:
    path, spoiled = chance.choice(ROUTES), _spoiled(body, chance)
    connection = Connection(port)
    try:
        status, answer = await connection.post(path, spoiled)
    except (OSError, ValueError, EOFError, asyncio.TimeoutError) as error:
        faults.append(f"POST {path} {spoiled[:80]!r}: no answer ({type(error).__name__})")
        return
    finally:
        connection.close()
    if b"Traceback" in answer or (status >= 500 and status not in ALLOWED):
        faults.append(f"POST {path} {spoiled[:80]!r}: {status} {answer[:200]!r}")


async def _gone(port: int, body: bytes, chance: random.Random) -> None:
    """Send a request, perhaps not all of it, and leave without its answer."""
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return
    head = f"POST /v1/s2s/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    writer.write(whole[: chance.randrange(1, len(whole))] if chance.random() < 0.3 else whole)
    await asyncio.sleep(chance.choice([0.0, 0.001, 0.01, 0.1]))
    if chance.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def _slow(port: int, work: Work, source: list[int], chance: random.Random, faults: list[str]) -> None:
    """Send a right request in pieces."""
    body = work.body(source)
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
        head = f"POST {work.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        whole = head.encode() + body
        at = 0
        while at < len(whole):
            n = chance.randint(1, 1 + len(whole) // 6)
            writer.write(whole[at : at + n])
            await writer.drain()
            at += n
            await asyncio.sleep(chance.choice([0.0, 0.005, 0.02]))
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
    except (OSError, asyncio.TimeoutError) as error:
        faults.append(f"a slow client got no answer ({type(error).__name__})")
        return
    status, _, rest = answer.partition(b"\r\n\r\n")
    is_refused = b" 503 " in status[:20]
    if not is_refused and not (b" 200 " in status[:20] and work.is_right(source, rest)):
        faults.append(f"a slow client got {answer[:200]!r}")
