"""Requests over loopback by keep-alive connections, in closed loops (clients that wait for their answers) and open ones
(arrivals at a given rate, whatever the server does). Everything is bounded: seconds, connections, requests.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

HOST = "127.0.0.1"
MOST_CONNECTIONS = 1024
PATIENCE = 60.0  # seconds for an answer
WARM_UP = 1.0  # seconds of a loop before it is measured


@dataclass
class Tally:
    """What came of the requests of a loop. seconds: of the measured part. latencies: of right answers, in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)  # how long a refusal (429, 503) took
    n_finished: int = 0  # right answers within the measured part
    n_right: int = 0  # right answers, also before and after it
    n_offered: int = 0
    n_wrong: int = 0
    n_failed: int = 0  # neither an answer nor a refusal
    n_unsent: int = 0  # for which there was no connection left

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def percentile(self, share: float, values: Sequence[float] | None = None) -> float:
        ordered = sorted(self.latencies if values is None else values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    @property
    def rate(self) -> float:
        return self.n_finished / self.seconds if self.seconds else 0.0


class Connection:
    """One keep-alive connection, opened when it is first needed and again after an error."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        return await self.send("POST", path, body)

    async def send(self, method: str, path: str, body: bytes, kind: str = "application/json") -> tuple[int, bytes]:
        """Returns the status and the body of the answer."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        assert self._reader is not None
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            self._writer.write(head.encode() + body)
            return await asyncio.wait_for(_answer(self._reader), PATIENCE)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(None, 2)[1])
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, await reader.readexactly(length)


@dataclass(frozen=True)
class Work:
    """Sources for a model that copies them, with its beams. path: where they are sent."""

    sources: Sequence[Sequence[int]]
    beams: int
    max_new_tokens: int
    path: str = "/v1/s2s/generate"

    def body(self, source: Sequence[int]) -> bytes:
        fields = {"input_ids": list(source), "num_beams": self.beams, "max_new_tokens": self.max_new_tokens}
        return json.dumps(fields).encode()

    def is_right(self, source: Sequence[int], body: bytes) -> bool:
        return list(json.loads(body)["outputs"][0]["token_ids"][1:]) == list(source)


async def send(connection: Connection, work: Work, source: Sequence[int], tally: Tally, window: Window) -> None:
    begin = time.perf_counter()
    is_measured = window.holds(begin)
    tally.n_offered += is_measured
    try:
        status, body = await connection.post(work.path, work.body(source))
    except (OSError, ValueError, EOFError, asyncio.TimeoutError, asyncio.IncompleteReadError):
        tally.n_failed += 1
        return
    end = time.perf_counter()
    if status in (429, 503):
        tally.refused.append(end - begin)
    elif status != 200:
        tally.n_failed += 1
    elif not work.is_right(source, body):
        tally.n_wrong += 1
    else:
        tally.n_right += 1
        tally.n_finished += window.holds(end)
        if is_measured:
            tally.latencies.append(end - begin)


@dataclass(frozen=True)
class Window:
    """The measured part of a loop."""

    begin: float
    end: float

    def holds(self, now: float) -> bool:
        return self.begin <= now < self.end


def window_of(seconds: float) -> Window:
    now = time.perf_counter()
    return Window(now + WARM_UP, now + WARM_UP + seconds)


def closed_loop(port: int, work: Work, n_clients: int, seconds: float) -> Tally:
    """n_clients that each send the next request as soon as they have the answer to the last one."""
    return asyncio.run(_closed(port, work, n_clients, seconds))


async def _closed(port: int, work: Work, n_clients: int, seconds: float) -> Tally:
    tally, window = Tally(seconds=seconds), window_of(seconds)
    numbers = iter(range(1 << 40))

    async def client() -> None:
        connection = Connection(port)
        while time.perf_counter() < window.end:
            await send(connection, work, work.sources[next(numbers) % len(work.sources)], tally, window)
        connection.close()

    await asyncio.gather(*(client() for _ in range(n_clients)))
    return tally


def open_loop(port: int, work: Work, rate: float, seconds: float, seed: int = 0) -> Tally:
    """Arrivals of a Poisson process. rate: requests a second."""
    return asyncio.run(_open(port, work, rate, seconds, seed))


async def _open(port: int, work: Work, rate: float, seconds: float, seed: int) -> Tally:
    tally, window, chance = Tally(seconds=seconds), window_of(seconds), random.Random(seed)
    free: list[Connection] = []
    under_way: set[asyncio.Task[None]] = set()
    n_made = 0

    async def one(source: Sequence[int], connection: Connection) -> None:
        await send(connection, work, source, tally, window)
        free.append(connection)

    due, number = time.perf_counter(), 0
    while due < window.end:
        due += chance.expovariate(rate)
        wait = due - time.perf_counter()
        if wait > 0 or number % 32 == 0:
            await asyncio.sleep(max(0.0, wait))
        if not free and n_made == MOST_CONNECTIONS:
            tally.n_unsent += window.holds(due)
            tally.n_offered += window.holds(due)
        else:
            n_made += not free
            connection = free.pop() if free else Connection(port)
            task = asyncio.create_task(one(work.sources[number % len(work.sources)], connection))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        number += 1
    await asyncio.gather(*under_way)
    for connection in free:
        connection.close()
    return tally
