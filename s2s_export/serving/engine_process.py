"""A process that decodes for a server: a session and a batcher of its own, at the other end of a socket.

    python -m s2s_export.serving.engine_process DESCRIPTOR

It is told, and tells:
    ("open", Opening)                             -> ("ready",), or ("failed", error)
    ("jobs", [(id, what `Job` takes), ..])        -> ("prefix", id, token ids) while a source streams, and at last
                                                     ("done", id, hypotheses or error or None, seconds since its batch
                                                     took it, and since its encoder was done)
    ("cancel", id)
    ("transcribe", id, sound, options)            -> ("heard", id, segment) .., ("heard", id, transcript or error)
                                                  -> ("report", BatchReport) after each batch
    ("close",)                                    finishes what is there, and ends

Signals are the server's: this process passes over SIGINT and SIGTERM, which service managers send to all, and ends when
the server does, as the socket is closed then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..errors import S2SError, explain
from ..runtime.session import load
from .batcher import Batcher
from .hearing import Stop, is_last
from .jobs import Job
from .wire import Wire

WARM_UP_LENGTHS = (8, 32)  # source tokens
NO_LIMIT = 1 << 62  # the server's queue bounds what waits


@dataclass(frozen=True)
class Opening:
    """What a process opens. loading: of `load`. The others: of `Batcher`."""

    path: str
    loading: Mapping[str, Any]
    workers: int
    batch_size: int
    join: bool | None


def main(descriptor: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    wire = Wire(Connection(descriptor))
    with contextlib.suppress(EOFError, OSError):  # the server has gone
        [_, opening] = wire.receive()
        try:
            process = Process(wire, opening)
        except Exception as error:
            wire.send("failed", _told(error))
            return
        wire.send("ready")
        process.run()
    sys.stderr.flush()
    os._exit(0)  # workers may be in the middle of what nobody waits for


class Process:
    def __init__(self, wire: Wire, opening: Opening) -> None:
        self._wire = wire
        self._session = load(opening.path, **opening.loading)
        wire.session = self._session
        limit = self._session.bundle.max_source_length or WARM_UP_LENGTHS[-1]
        self._session.warm_up([min(length, limit) for length in WARM_UP_LENGTHS])
        self._batcher = Batcher(
            self._session,
            workers=opening.workers,
            batch_size=opening.batch_size,
            max_entries=NO_LIMIT,
            max_tokens=NO_LIMIT,
            join=opening.join,
            on_batch=lambda report: self._tell("report", report),
        )
        self._jobs: dict[int, Job] = {}
        self._stops: dict[int, Stop] = {}  # of transcriptions

    def run(self) -> None:
        while True:
            kind, *rest = self._wire.receive()
            if kind == "jobs":
                for key, given in rest[0]:
                    self._decode(key, **given)
            elif kind == "cancel":
                if (job := self._jobs.get(rest[0])) is not None:
                    job.cancel()
                if (stop := self._stops.get(rest[0])) is not None:
                    stop()
            elif kind == "transcribe":
                self._transcribe(*rest)
            elif kind == "close":
                self._batcher.close()
                return

    def _tell(self, *message: Any) -> None:
        with contextlib.suppress(OSError):  # the server has gone; `run` notices
            self._wire.send(*message)

    def _decode(self, key: int, /, waited: float, remaining: float, streams: bool, **given: Any) -> None:
        """waited, remaining: seconds since the source arrived, and until its deadline."""
        now = time.monotonic()
        on_prefix = (lambda ids: self._tell("prefix", key, ids)) if streams else None
        job = Job(**given, deadline=now + remaining, on_prefix=on_prefix, arrived=now - waited)
        self._jobs[key] = job
        job.future.add_done_callback(lambda _: self._done(key, job))
        try:
            self._batcher.take_in([job])
        except S2SError as error:
            job.settle(error)

    def _done(self, number: int, job: Job) -> None:
        self._jobs.pop(number, None)
        now = time.monotonic()
        ago = [None if moment is None else now - moment for moment in (job.began, job.encoded)]
        if job.future.cancelled():
            self._tell("done", number, None, *ago)
            return
        error = job.future.exception()
        self._tell("done", number, job.future.result() if error is None else error, *ago)

    def _transcribe(self, number: int, sound: Any, options: dict[str, Any]) -> None:
        def tell(told: Any) -> None:
            if is_last(told):
                self._stops.pop(number, None)
            self._tell("heard", number, told)

        self._stops[number] = lambda: None  # until there is one: it may be over by then
        stop = self._batcher.transcribe(sound, options, tell)
        if number in self._stops:
            self._stops[number] = stop


def _told(error: BaseException) -> S2SError:
    return error if isinstance(error, S2SError) else S2SError(explain(error))


if __name__ == "__main__":
    main(int(sys.argv[1]))
