"""One engine process, as its server has it: what it is decoding, and that there is another one when it ends."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from ..errors import S2SError
from ..runtime.session import Session
from .engine_process import Opening
from .hearing import Stop, Tell, is_last
from .jobs import BatchReport, EngineLost, Job
from .wire import Wire

log = logging.getLogger("s2s.serving")
BATCHES_AHEAD = 2  # batches' worth of sources that a process has for each worker: one decoded, one that waits
LONGEST_PAUSE = 30.0  # seconds between two tries to start a process
FINISHING = 5.0  # seconds that a process has to end in


class Engine:
    """A process and the thread that listens to it, and starts it again.

    changed: a lock that is held where `jobs` and `is_ready` are used; it is told when there is room. n_tokens: source
    tokens of what it has. on_report: called in its thread.
    """

    def __init__(
        self,
        session: Session,
        opening: Opening,
        changed: threading.Condition,
        on_report: Callable[[BatchReport], None],
        clock: Callable[[], float],
    ) -> None:
        self.jobs: dict[int, Job] = {}
        self.n_tokens = 0
        self.n_restarts = 0
        self.is_ready = False
        self.started: Future[None] = Future()  # of the first process
        self._session = session
        self._opening = opening
        self._changed = changed
        self._on_report = on_report
        self._clock = clock
        self._is_closed = False
        self._numbers = itertools.count()
        self._heard: dict[int, Tell] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None
        self._thread = threading.Thread(target=self._keep, name="s2s-engine", daemon=True)
        self._thread.start()

    @property
    def n_workers(self) -> int:
        return self._opening.workers

    @property
    def n_transcribing(self) -> int:
        return len(self._heard)

    @property
    def has_room(self) -> bool:
        return self.is_ready and len(self.jobs) < BATCHES_AHEAD * self._opening.workers * self._opening.batch_size

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def take(self, job: Job) -> int:
        """Reserve a place for a job. Returns its number, for `send`. Hold `changed`."""
        number = next(self._numbers)
        self.jobs[number] = job
        self.n_tokens += job.length
        job.future.add_done_callback(lambda future: self._settled(number, future))
        return number

    def send(self, numbered: Sequence[tuple[int, Job]]) -> None:
        """Hand over jobs that were taken."""
        now, given = self._clock(), []
        for number, job in numbered:
            if job.cancelled:
                self._forget(number)
            else:
                given.append((number, _described(job, now)))
        try:
            self._tell("jobs", given)
        except S2SError as error:
            if len(numbered) > 1:  # one of them is at fault
                for one in numbered:
                    self.send([one])
            elif (wrong := self._forget(numbered[0][0])) is not None:
                wrong.settle(error)

    def transcribe(self, sound: Any, options: Mapping[str, Any], tell: Tell) -> Stop:
        """See `Batcher.transcribe`."""
        with self._changed:
            number = next(self._numbers)
            self._heard[number] = tell
            is_ready = self.is_ready
        if is_ready:
            self._tell("transcribe", number, sound, dict(options))
        else:
            self._hear(number, self._lost("is being started"))
        return lambda: self._tell("cancel", number)

    def give_up(self) -> list[Job]:
        """Forget all jobs, and return them. Hold `changed`."""
        left = list(self.jobs.values())
        self.jobs.clear()
        self.n_tokens = 0
        return left

    def close(self) -> None:
        """End the process when it has finished what it has."""
        with self._changed:
            self._is_closed = True
        self._tell("close")

    def join(self) -> None:
        """Wait for the end, and bring it about if it does not come."""
        process = self._process
        if process is not None:
            try:
                process.wait(FINISHING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._thread.join(FINISHING)

    def _tell(self, *message: Any) -> None:
        wire = self._wire
        try:
            if wire is not None:
                wire.send(*message)
        except OSError:  # it ended; the thread notices, and settles what it had
            pass

    def _settled(self, number: int, future: Future[Any]) -> None:
        if future.cancelled() and number in self.jobs:
            self._tell("cancel", number)

    def _forget(self, number: int) -> Job | None:
        with self._changed:
            job = self.jobs.pop(number, None)
            if job is not None:
                self.n_tokens -= job.length
            self._changed.notify_all()
        return job

    def _keep(self) -> None:
        """Start a process, listen to it, and begin again when it ends."""
        pause = 1.0
        while not self._is_closed:
            self._start()
            error = self._listen()
            with self._changed:
                was_ready, self.is_ready = self.is_ready, False
                lost = list(self.jobs)
                heard = list(self._heard)
            status = self._ended()
            if not self.started.done():
                self.started.set_exception(error or S2SError(f"an engine process ended ({status}) before it was ready"))
                return
            failure = self._lost(f"ended ({status})")
            for number in lost:
                if (job := self._forget(number)) is not None:
                    job.settle(failure)
            for number in heard:
                self._hear(number, failure)
            if self._is_closed:
                return
            self.n_restarts += 1
            pause = 1.0 if was_ready else min(2 * pause, LONGEST_PAUSE)
            log.warning("an engine process ended (%s), and is started again%s", status, f": {error}" if error else "")
            if not was_ready:
                time.sleep(pause)

    def _lost(self, what: str) -> EngineLost:
        return EngineLost(f"the process that had this text {what}; another one takes its place; send it again", 1.0)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            command = [sys.executable, "-m", f"{__package__}.engine_process", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment
            )
        self._wire = Wire(Connection(ours.detach()), self._session)
        self._tell("open", self._opening)

    def _ended(self) -> str:
        """Close what is left of the process. Returns how it ended."""
        assert self._process is not None and self._wire is not None
        try:
            code = self._process.wait(FINISHING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._wire.close()
        return signal.Signals(-code).name if code < 0 else f"status {code}"

    def _listen(self) -> BaseException | None:
        """Until the process ends. Returns why it could not begin, if it said so."""
        assert self._wire is not None
        failed: BaseException | None = None
        try:
            while True:
                kind, *rest = self._wire.receive()
                if kind == "ready":
                    with self._changed:
                        self.is_ready = True
                        self._changed.notify_all()
                    if not self.started.done():
                        self.started.set_result(None)
                elif kind == "failed":
                    failed = rest[0]
                else:
                    self._hear_of(kind, *rest)
        except (EOFError, OSError):
            return failed

    def _hear_of(self, kind: str, *rest: Any) -> None:
        if kind == "done":
            self._done(*rest)
        elif kind == "prefix":
            job = self.jobs.get(rest[0])
            if job is not None and job.on_prefix is not None and not job.cancelled:
                job.on_prefix(rest[1])
        elif kind == "report":
            self._on_report(rest[0])
        elif kind == "heard":
            self._hear(*rest)

    def _done(self, number: int, found: Any, began_ago: float | None, encoded_ago: float | None) -> None:
        job = self._forget(number)
        if job is None:
            return
        now = self._clock()
        job.began = None if began_ago is None else now - began_ago
        job.encoded = None if encoded_ago is None else now - encoded_ago
        job.settle([] if found is None else found)

    def _hear(self, number: int, told: Any) -> None:
        with self._changed:
            tell = self._heard.pop(number, None) if is_last(told) else self._heard.get(number)
        if tell is not None:
            tell(told)


def _described(job: Job, now: float) -> dict[str, Any]:
    return {
        "source": job.source, "length": job.length, "options": job.options, "alignments": job.alignments,
        "number": job.number, "priority": job.priority, "waited": now - job.arrived, "remaining": job.deadline - now,
        "streams": job.on_prefix is not None,
    }  # fmt: skip
