"""Requests that are not as they should be, beside right ones whose answers are checked: malformed bodies on every route
that the server lists, clients that disconnect at any moment, and clients that send a few bytes at a time.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .client import HOST, Connection, Tally, Window, Work, send

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
KINDS_OF_BODY = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=B",
    "audio/wav",
)
VALUES: tuple[object, ...] = (None, True, -1, 0, 10**30, 1.5, "", "x", "\ud800", [], [[]], [1], ["a", 2], {}, {"a": {}})
ALLOWED = (501, 503)  # of the statuses from 500 on
MODELS = {"{model}": ("NAME", "NAME", "nothing", "%00"), "{version}": ("1", "2")}  # what stands for names in paths
KINDS = {"right": 0.4, "malformed": 0.35, "gone": 0.2, "slow": 0.05}  # shares of all requests


@dataclass
class Attacked:
    """How many of each kind there were, and what went wrong, a line each. routes: malformed requests to each route."""

    counts: dict[str, int]
    faults: list[str]
    tally: Tally
    routes: dict[str, int]

    def __add__(self, other: Attacked) -> Attacked:
        counts = {kind: n + other.counts[kind] for kind, n in self.counts.items()}
        routes = {route: n + other.routes[route] for route, n in self.routes.items()}
        return Attacked(counts, self.faults + other.faults, self.tally + other.tally, routes)


def attack(port: int, work: Work, n: int, n_clients: int, model: str, seed: int = 0) -> Attacked:
    """n requests in all by n_clients side by side. model: the name of the one that is served."""
    return asyncio.run(_attack(port, work, n, n_clients, model, seed))


async def _attack(port: int, work: Work, n: int, n_clients: int, model: str, seed: int) -> Attacked:
    routes = await _routes(port)
    found = Attacked(dict.fromkeys(KINDS, 0), [], Tally(), {f"{method} {path}": 0 for method, path in routes})
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
                method, path = chance.choice(routes)
                found.routes[f"{method} {path}"] += 1
                await _malformed(port, method, _named(path, model, chance), work.body(source), chance, found.faults)
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


async def _routes(port: int) -> list[tuple[str, str]]:
    """(method, path) of every route, as the server lists them, and of one that there is not."""
    connection = Connection(port)
    try:
        _, answer = await connection.send("GET", "/openapi.json", b"")
    finally:
        connection.close()
    paths = json.loads(answer)["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods] + [("POST", "/nothing")]


def _named(path: str, model: str, chance: random.Random) -> str:
    for place, names in MODELS.items():
        path = path.replace(place, chance.choice(names).replace("NAME", model))
    return path


async def _malformed(port: int, method: str, path: str, body: bytes, chance: random.Random, faults: list[str]) -> None:
    spoiled = _spoiled(body, chance)
    method = method if chance.random() < 0.9 else chance.choice(METHODS)
    kind = KINDS_OF_BODY[0] if chance.random() < 0.8 else chance.choice(KINDS_OF_BODY)
    connection = Connection(port)
    try:
        status, answer = await connection.send(method, path, spoiled, kind)
    except (OSError, ValueError, EOFError, asyncio.TimeoutError) as error:
        faults.append(f"{method} {path} {spoiled[:80]!r}: no answer ({type(error).__name__})")
        return
    finally:
        connection.close()
    if b"Traceback" in answer or (status >= 500 and status not in ALLOWED):
        faults.append(f"{method} {path} {kind} {spoiled[:80]!r}: {status} {answer[:200]!r}")


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


async def _slow(port: int, work: Work, source: Sequence[int], chance: random.Random, faults: list[str]) -> None:
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
