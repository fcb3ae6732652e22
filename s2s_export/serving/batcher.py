"""Decodes the sources of many requests together.

batcher = Batcher(session)
jobs = batcher.submit(sources, options)
[job.future.result() for job in jobs]

A worker that is free takes a batch of what waits; nothing waits for a batch to fill up. Its first entry is the oldest
of the request whose turn it is. Requests of the highest priority take turns, so a request of a thousand texts delays
one of a single text by no more than the batches that are being decoded. The batch is filled in rounds, in each of which
every waiting request offers the entry that is nearest in length to the first one; in a round the nearest come first,
after those that a batch's worth of others overtook (queueing.py).

Where the engine allows it, entries also join a batch between two of its steps, and each leaves it with its result as
soon as it is finished (joined.py). Such a batch holds entries of equally many beams (`Job.joint_key`), each with
options of its own. While the entry whose turn it is can't come in, nobody overtakes it: the batch runs empty, and that
entry begins the next one. Elsewhere (`why_whole`) batches are decoded whole (whole.py), and hold entries of equal
options.

Who shares a batch changes no token, in fp32 and with our own kernels in int8, and a sampled source draws by its place
in its own request.

An entry leaves when its job is cancelled or its deadline passes: from the queue at once, from a batch before the next
decoder step (on a device, whole batches are decoded). What does not fit into the queue is refused with the time after
which it will.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..errors import InvalidOption
from ..runtime import cores
from ..runtime.decoding import GenerationOptions
from ..runtime.joining import why_whole_batches
from ..runtime.scheduling import DEFAULT_BATCH_SIZE, MOST_TOKENS
from ..runtime.session import Session
from ..runtime.sources import Source
from . import hearing, telemetry
from .hearing import Stop, Tell
from .jobs import BatchReport as BatchReport
from .jobs import Closed as Closed
from .jobs import DeadlinePassed as DeadlinePassed
from .jobs import Job as Job
from .jobs import OnPrefix as OnPrefix
from .jobs import Overloaded as Overloaded
from .jobs import TooLarge as TooLarge
from .jobs import jobs_of
from .joined import JoinedBatches
from .queueing import Queue
from .whole import WholeBatches

MOST_WORKERS = 8  # beyond these, threads of one process wait for each other's turn in Python
Clock = Callable[[], float]


class Batcher:
    """Worker threads around a session. Safe to use from several threads. `Processes` is the same in other processes.

    workers: batches decoded side by side; one for each core on a CPU, and one elsewhere, if None. The session should
    have one thread for each (`load(threads=1)`).
    max_entries, max_tokens, max_wait: what may wait, in sources and in source tokens, and for how many seconds; see
    queueing.py.
    join: whether entries join batches that are being decoded, where the engine allows it; by default not with a small
    model. why_whole: why they don't, in one sentence, or None.
    on_batch: called in a worker's thread after each batch, of one that is joined every few steps.
    """

    def __init__(
        self,
        session: Session,
        *,
        workers: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_entries: int = 4096,
        max_tokens: int = 65536,
        max_wait: float | None = None,
        join: bool | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if workers is None:
            workers = min(MOST_WORKERS, cores.available_cores()) if session.computes_on_cores else 1
        for name, value in (("workers", workers), ("batch_size", batch_size)):
            if value < 1:
                raise InvalidOption(f"{name} is {value}; expected at least 1")
        self.session = session
        self.n_processes = self.n_restarts = 0
        self.workers = workers
        self.batch_size = batch_size
        self.why_whole = why_whole(session, join)
        self._on_batch = on_batch
        self._clock = clock
        self._queue = Queue(workers, batch_size, max_entries, max_tokens, max_wait, clock)
        self._n_busy = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"s2s-batch-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def n_waiting(self) -> int:
        """Sources in the queue."""
        return self._queue.n_waiting

    @property
    def n_waiting_tokens(self) -> int:
        """Source tokens in the queue."""
        return self._queue.n_tokens

    @property
    def is_idle(self) -> bool:
        return not self._queue.n_waiting and not self._n_busy

    @property
    def is_working(self) -> bool:
        """Whether there is somebody to decode what comes."""
        return True

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
        """Queue the checked sources of one request: all of them, or none.

        priority: higher ones go first. timeout: seconds after which a source that is not done fails.
        on_prefix: called in a worker's thread with the ids that became final since the last call; for one source.
        Raises Overloaded, TooLarge, Closed, and InvalidOption where the model has no alignments.
        """
        jobs = jobs_of(self.session, sources, options, alignments, priority, timeout, on_prefix, self._clock())
        self.take_in(jobs)
        return jobs

    def take_in(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request. Raises what `submit` does of the queue."""
        with self._queue.changed:
            self._queue.put(jobs)
        for job in jobs:
            telemetry.follow(job, self._clock)

    def require_time(self, priority: int = 0) -> None:
        """Raises Overloaded where even a single source would wait for too long: what `submit` would raise, before a
        request is looked into."""
        with self._queue.changed:
            self._queue.require_time(1, priority)

    def transcribe(self, sound: Any, options: Mapping[str, Any], tell: Tell) -> Stop:
        """Transcribe in a thread beside the workers; see `hearing.begin`."""
        return hearing.begin(self.session, sound, options, tell)

    def close(self, timeout: float | None = None) -> bool:
        """Take no more work and finish what is there. After `timeout` seconds what waits fails.

        Returns whether all work was finished.
        """
        queue = self._queue
        with queue.changed:
            queue.is_closed = True
            queue.changed.notify_all()
            finished = queue.changed.wait_for(lambda: self.is_idle, timeout)
            if not finished:
                error = Closed("the server stopped before this text was decoded; send it again", 1.0)
                for job in queue.take_all():
                    job.settle(error)
        for thread in self._threads:
            thread.join(timeout=1.0 if timeout is not None else None)
        return finished

    def _work(self) -> None:
        worker, queue = self._make_worker(), self._queue
        while True:
            with queue.changed:
                if not worker.n_sources:
                    self._wait(worker)
                was_busy = worker.n_sources > 0
                batch = self._next_batch(worker) if worker.n_more_kinds(queue.n_waiting) else []
                if not batch and not was_busy:
                    if queue.is_closed and not queue.n_waiting:
                        return
                    continue
                self._n_busy += not was_busy
            try:
                worker.work(batch)
            finally:
                if not worker.n_sources:
                    with queue.changed:
                        self._n_busy -= 1
                        queue.changed.notify_all()

    def _wait(self, worker: JoinedBatches | WholeBatches) -> None:
        """Until there is something to do. Hold the queue's `changed`."""
        queue = self._queue
        if not queue.changed.wait_for(lambda: queue.n_waiting or queue.is_closed, worker.patience):
            worker.rest()
            queue.changed.wait_for(lambda: queue.n_waiting or queue.is_closed)

    def _make_worker(self) -> JoinedBatches | WholeBatches:
        if self.why_whole is not None:
            return WholeBatches(self.session, self._clock, self._report)
        return JoinedBatches(self.session, self.batch_size, self._clock, self._report, self._queue.version)

    def _next_batch(self, worker: JoinedBatches | WholeBatches) -> list[Job]:
        """Take from the queue what comes to a worker's batch now; [] if nothing does."""
        self._queue.drop_unwanted()
        if not self._queue.n_waiting:
            self._queue.changed.notify_all()
            return []
        return next_batch(self._queue, worker, self.batch_size)

    def _report(self, report: BatchReport) -> None:
        with self._queue.changed:
            self._queue.learn(report)
        if self._on_batch is not None:
            self._on_batch(report)


class Worker(Protocol):
    """A worker as `next_batch` sees it: JoinedBatches, WholeBatches. present: what it is decoding."""

    joins: bool

    @property
    def n_sources(self) -> int: ...

    @property
    def present(self) -> Sequence[Job]: ...

    def n_more_kinds(self, n_waiting: int) -> int: ...


def next_batch(queue: Queue, worker: Worker, batch_size: int) -> list[Job]:
    """Take from a queue that is not empty what comes to a worker's batch now; [] if nothing does."""
    first = queue.first()
    assert first is not None
    length = first.length
    longest = max((job.length for job in worker.present), default=0)
    n_before, kinds = worker.n_sources, set[object]()
    n_more_kinds = worker.n_more_kinds(queue.n_waiting)
    batch: list[Job] = []

    def fits(job: Job) -> bool:
        n = n_before + len(batch) + 1
        if n > batch_size or max(longest, job.length) * n > MOST_TOKENS:
            return False
        if not worker.joins:
            return job.key == first.key
        return job.joint_key == first.joint_key and (job.key in kinds or len(kinds) < n_more_kinds)

    def note(job: Job) -> None:
        nonlocal longest
        longest = max(longest, job.length)
        kinds.add(job.key)
        batch.append(job)

    # A source that is longer than any batch allows is decoded alone.
    if n_before and not (worker.present[0].joint_key == first.joint_key and fits(first)):
        return []
    queue.take_first()
    note(first)
    n_before_round = 0
    while n_before_round < len(batch) < batch_size - n_before:
        n_before_round = len(batch)
        for job in queue.take_round(fits, length):
            note(job)
    return batch


def why_whole(session: Session, join: bool | None) -> str | None:
    """Why entries don't join, or None. By default they don't with a small model. Measured by benchmarks/serve_load.py
    (LOG.md): on a model of OPUS-MT's size requests were answered sooner for joining, on one of 5 MB later.
    """
    if join is False:
        return "joining is switched off"
    if join is None and session.bundle.n_bytes <= cores.SMALL:
        return "a batch of so small a model is soon over, and joining it costs more than waiting"
    return why_whole_batches(session)
