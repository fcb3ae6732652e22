"""Decodes in processes of their own: what `Batcher` is for up to eight workers, for more of them.

Threads of one process take turns in Python, which is 8 % of a step of a model of OPUS-MT's size and most of one of a
small model. So beyond eight workers a server has processes of up to eight each, which map the same weights: the pages
of a file are in memory once, however many processes read them. The server's own process only reads requests and
writes answers.

There is one queue, here. The source whose turn it is goes to the process that has the fewest source tokens, as soon as
one has room; a process has at most two batches' worth for each worker, so that what is urgent need not wait long. A
process that ends is started again, and what it had fails with `EngineLost`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidOption
from ..runtime.decoding import GenerationOptions
from ..runtime.session import Session
from ..runtime.sources import Source
from . import telemetry
from .batcher import Clock, why_whole
from .engine import Engine
from .engine_process import Opening
from .hearing import Stop, Tell
from .jobs import BatchReport, Closed, Job, OnPrefix, jobs_of
from .queueing import Queue

CAN_HAVE_PROCESSES = sys.platform != "win32"  # whose processes are given no sockets
TICK = 1.0  # seconds after which what is late in the queue is told so, also where nothing else happens


class Processes:
    """See `Batcher`, whose methods this has. session: reads requests and writes answers; it decodes nothing, and its
    graphs are closed.

    most: workers of one process. loading: of `load`, for the processes. Raises what opening the bundle raises there.
    """

    def __init__(
        self,
        session: Session,
        *,
        workers: int,
        most: int,
        batch_size: int,
        max_entries: int,
        max_tokens: int,
        max_wait: float | None,
        join: bool | None,
        loading: dict[str, Any],
        on_batch: Callable[[BatchReport], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if not CAN_HAVE_PROCESSES:
            raise InvalidOption(f"{workers} workers need engine processes, which there are not on Windows; take {most}")
        self.session = session
        self.workers = workers
        self.batch_size = batch_size
        self.why_whole = why_whole(session, join)
        self._on_batch = on_batch
        self._clock = clock
        self._queue = Queue(workers, batch_size, max_entries, max_tokens, max_wait, clock)
        n = -(-workers // most)
        sizes = [workers // n + (i < workers % n) for i in range(n)]
        path = str(Path(session.bundle.path).resolve())
        release = getattr(session.backend, "release_graphs", None)
        if release is not None:
            release()
        self.engines = [
            Engine(session, Opening(path, loading, size, batch_size, join), self._queue.changed, self._report, clock)
            for size in sizes
        ]
        self._thread = threading.Thread(target=self._route, name="s2s-route", daemon=True)
        try:
            for engine in self.engines:
                engine.started.result()
        except BaseException:
            self._end()
            raise
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return self._queue.n_waiting

    @property
    def n_waiting_tokens(self) -> int:
        return self._queue.n_tokens

    @property
    def is_idle(self) -> bool:
        return not self._queue.n_waiting and not any(engine.jobs for engine in self.engines)

    @property
    def is_working(self) -> bool:
        return self.n_processes > 0

    @property
    def n_processes(self) -> int:
        """Engine processes that work now."""
        return sum(engine.is_ready for engine in self.engines)

    @property
    def n_restarts(self) -> int:
        return sum(engine.n_restarts for engine in self.engines)

    def submit(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        priority: int = 0,
        timeout: float | None = None,
        on_prefix: OnPrefix | None = None,
    ) -> list[Job]:
        """See `Batcher.submit`. A job may also fail with EngineLost."""
        jobs = jobs_of(self.session, sources, options, alignments, priority, timeout, on_prefix, self._clock())
        with self._queue.changed:
            self._queue.put(jobs)
        for job in jobs:
            telemetry.follow(job, self._clock)
        return jobs

    def require_time(self, priority: int = 0) -> None:
        """See `Batcher.require_time`."""
        with self._queue.changed:
            self._queue.require_time(1, priority)

    def transcribe(self, sound: Any, options: Mapping[str, Any], tell: Tell) -> Stop:
        """See `Batcher.transcribe`. It is done by the process that has the fewest to transcribe."""
        with self._queue.changed:
            engine = min(self.engines, key=lambda engine: (not engine.is_ready, engine.n_transcribing))
        return engine.transcribe(sound, options, tell)

    def close(self, timeout: float | None = None) -> bool:
        """See `Batcher.close`."""
        queue = self._queue
        with queue.changed:
            queue.is_closed = True
            queue.changed.notify_all()
            finished = queue.changed.wait_for(lambda: self.is_idle, timeout)
            left = queue.take_all()
            left += [job for engine in self.engines for job in engine.give_up()]
        for job in left:
            job.settle(Closed("the server stopped before this text was decoded; send it again", 1.0))
        self._thread.join(2 * TICK)
        self._end()
        return finished

    def _end(self) -> None:
        for engine in self.engines:
            engine.close()
        for engine in self.engines:
            engine.join()

    def _route(self) -> None:
        queue = self._queue
        while True:
            with queue.changed:
                queue.changed.wait_for(
                    lambda: queue.is_closed or (queue.n_waiting and any(engine.has_room for engine in self.engines)),
                    TICK,
                )
                queue.drop_unwanted()
                if queue.is_closed and not queue.n_waiting:
                    return
                sent = self._assign()
                if not sent and queue.is_closed:
                    queue.changed.wait(TICK)  # for room
            for engine, numbered in sent:
                engine.send(numbered)

    def _assign(self) -> list[tuple[Engine, list[tuple[int, Job]]]]:
        """Take from the queue what there is room for."""
        found: dict[int, list[tuple[int, Job]]] = {}
        while self._queue.n_waiting:
            free = [i for i, engine in enumerate(self.engines) if engine.has_room]
            if not free:
                break
            i = min(free, key=lambda i: self.engines[i].n_tokens / self.engines[i].n_workers)
            job = self._queue.take_first()
            assert job is not None
            found.setdefault(i, []).append((self.engines[i].take(job), job))
        return [(self.engines[i], numbered) for i, numbered in found.items()]

    def _report(self, report: BatchReport) -> None:
        with self._queue.changed:
            self._queue.learn(report)
        if self._on_batch is not None:
            self._on_batch(report)
