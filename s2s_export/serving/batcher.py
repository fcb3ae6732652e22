"""Decodes the sources of many requests together.

batcher = Batcher(session)
jobs = batcher.submit(sources, options)
[job.future.result() for job in jobs]

A worker that is free takes a batch of what waits; nothing waits for a batch to fill up. Its first entry is the oldest
of the request whose turn it is. Requests of the highest priority take turns, so a request of a thousand texts delays
one of a single text by no more than the batches that are being decoded. The batch is filled in rounds, in each of which
every waiting request offers the entry that is nearest in length to the first one; in a round the nearest come first.

Where the engine allows it, entries also join a batch between two of its steps, and each leaves it with its result as
soon as it is finished (joined.py). Such a batch holds entries of equally many beams (`Job.joint_key`), each with
options of its own. While the entry whose turn it is can't come in, nobody overtakes it: the batch runs empty, and that
entry begins the next one. Elsewhere (`why_whole`) batches are decoded whole (whole.py), and hold entries of equal
options.

In fp32, who shares a batch changes no token, and a sampled source draws by its place in its own request.

An entry leaves when its job is cancelled or its deadline passes: from the queue at once, from a batch before the next
decoder step (on a device, whole batches are decoded). What does not fit into the queue is refused with the time after
which it will.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..errors import InvalidOption
from ..runtime import cores
from ..runtime.decoding import GenerationOptions
from ..runtime.joining import why_whole_batches
from ..runtime.scheduling import DEFAULT_BATCH_SIZE, MOST_TOKENS
from ..runtime.session import Session
from ..runtime.sources import Source
from .jobs import BatchReport as BatchReport
from .jobs import Closed as Closed
from .jobs import DeadlinePassed as DeadlinePassed
from .jobs import Job as Job
from .jobs import OnPrefix as OnPrefix
from .jobs import Overloaded as Overloaded
from .jobs import Request, late
from .jobs import TooLarge as TooLarge
from .joined import JoinedBatches
from .whole import WholeBatches

MOST_WORKERS = 8  # beyond these, threads of one process wait for each other's turn in Python
OLD_SHARE = 0.8  # of the last estimate in the next one of tokens a second
Clock = Callable[[], float]


class Batcher:
    """Worker threads around a session. Safe to use from several threads.

    workers: batches decoded side by side; one for each core on a CPU, and one elsewhere, if None. The session should
    have one thread for each (`load(threads=1)`).
    max_entries, max_tokens: what may wait, in sources and in source tokens.
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
        join: bool | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if workers is None:
            workers = min(MOST_WORKERS, cores.available_cores()) if session.computes_on_cores else 1
        for name, value in (("workers", workers), ("batch_size", batch_size), ("max_entries", max_entries)):
            if value < 1:
                raise InvalidOption(f"{name} is {value}; expected at least 1")
        self.session = session
        self.workers = workers
        self.batch_size = batch_size
        self.max_entries = max_entries
        self.max_tokens = max_tokens
        self.why_whole = why_whole_batches(session) if join else _why_not_join(session, join)
        self._on_batch = on_batch
        self._clock = clock
        self._requests: deque[Request] = deque()
        self._n_waiting = 0
        self._n_tokens = 0
        self._n_busy = 0
        self._rate: float | None = None  # source tokens that one worker takes from the queue a second
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"s2s-batch-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def n_waiting(self) -> int:
        """Sources in the queue."""
        return self._n_waiting

    @property
    def n_waiting_tokens(self) -> int:
        """Source tokens in the queue."""
        return self._n_tokens

    @property
    def is_idle(self) -> bool:
        return not self._n_waiting and not self._n_busy

    def expected_wait(self) -> float:
        """Seconds until what waits now has been taken, by the speed measured so far."""
        return self._n_tokens / (self._rate * self.workers) if self._rate else 1.0

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
        if alignments and not self.session.has_attention:
            raise InvalidOption("this model has no attention, so there is no alignment; don't ask for one")
        if on_prefix is not None and len(sources) != 1:
            raise InvalidOption(f"{len(sources)} sources are to be streamed; expected one")
        now = self._clock()
        deadline = float("inf") if timeout is None else now + timeout
        lengths = [self.session.kind.length(source) for source in sources]
        jobs = [
            Job(source, length, options, alignments, number, deadline, on_prefix, now)
            for number, (source, length) in enumerate(zip(sources, lengths, strict=True))
        ]
        with self._changed:
            self._require_room(len(jobs), sum(lengths))
            if jobs:
                self._requests.append(Request(jobs, priority))
                self._n_waiting += len(jobs)
                self._n_tokens += sum(lengths)
                self._changed.notify(len(jobs))
        return jobs

    def close(self, timeout: float | None = None) -> bool:
        """Take no more work and finish what is there. After `timeout` seconds what waits fails.

        Returns whether all work was finished.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            finished = self._changed.wait_for(lambda: self.is_idle, timeout)
            if not finished:
                error = Closed("the server stopped before this text was decoded; send it again", 1.0)
                for job in self._take_all():
                    job.settle(error)
        for thread in self._threads:
            thread.join(timeout=1.0 if timeout is not None else None)
        return finished

    def _require_room(self, n_entries: int, n_tokens: int) -> None:
        if self._is_closed:
            raise Closed("the server is stopping; send this to another one, or again when it is back", 1.0)
        if n_entries > self.max_entries or n_tokens > self.max_tokens:
            raise TooLarge(
                f"the request has {n_entries} texts of {n_tokens} tokens together; expected at most "
                f"{self.max_entries} and {self.max_tokens}; send it in parts"
            )
        self._drop_unwanted()
        if self._n_waiting + n_entries > self.max_entries or self._n_tokens + n_tokens > self.max_tokens:
            raise Overloaded(
                f"{self._n_waiting} texts of {self._n_tokens} tokens are waiting, and there is no room for "
                f"{n_tokens} tokens more; send it again later",
                self.expected_wait(),
            )

    def _work(self) -> None:
        worker = self._make_worker()
        while True:
            with self._changed:
                if not worker.n_sources:
                    self._changed.wait_for(lambda: self._n_waiting or self._is_closed)
                was_busy = worker.n_sources > 0
                batch = self._next_batch(worker) if worker.n_more_kinds(self._n_waiting) else []
                if not batch and not was_busy:
                    if self._is_closed and not self._n_waiting:
                        return
                    continue
                self._n_busy += not was_busy
            try:
                worker.work(batch)
            finally:
                if not worker.n_sources:
                    with self._changed:
                        self._n_busy -= 1
                        self._changed.notify_all()

    def _make_worker(self) -> JoinedBatches | WholeBatches:
        if self.why_whole is not None:
            return WholeBatches(self.session, self._clock, self._report)
        return JoinedBatches(self.session, self.batch_size, self._clock, self._report)

    def _next_batch(self, worker: JoinedBatches | WholeBatches) -> list[Job]:
        """Take from the queue what comes to a worker's batch now; [] if nothing does."""
        self._drop_unwanted()
        if not self._requests:
            self._changed.notify_all()
            return []
        first_request = max(self._requests, key=lambda request: request.priority)  # the first of several
        first = first_request.waiting[0]
        longest = max((job.length for job in worker.present), default=0)
        n_before, kinds = worker.n_sources, set[object]()
        n_more_kinds = worker.n_more_kinds(self._n_waiting)
        batch: list[Job] = []

        def has_room(job: Job) -> bool:
            n = n_before + len(batch) + 1
            return n <= self.batch_size and max(longest, job.length) * n <= MOST_TOKENS

        def fits(job: Job) -> bool:
            if not worker.joins:
                return job.key == first.key
            return job.joint_key == first.joint_key and (job.key in kinds or len(kinds) < n_more_kinds)

        def take(request: Request, job: Job) -> None:
            nonlocal longest
            longest = max(longest, job.length)
            kinds.add(job.key)
            self._take(request, job)
            batch.append(job)

        # A source that is longer than any batch allows is decoded alone.
        if n_before and not (worker.present[0].joint_key == first.joint_key and has_room(first) and fits(first)):
            return []
        take(first_request, first)
        self._requests.remove(first_request)
        self._requests.append(first_request)
        taken = 1
        while taken and n_before + len(batch) < self.batch_size:
            offers = [
                (-request.priority, abs(job.length - first.length), place, request, job)
                for place, request in enumerate(self._requests)
                if (job := request.nearest(fits, first.length)) is not None
            ]
            taken = 0
            for *_, request, job in sorted(offers, key=lambda offer: offer[:3]):
                if has_room(job) and fits(job):
                    take(request, job)
                    taken += 1
        self._requests = deque(request for request in self._requests if request.waiting)
        return batch

    def _take(self, request: Request, job: Job) -> None:
        request.waiting.remove(job)
        self._n_waiting -= 1
        self._n_tokens -= job.length

    def _take_all(self) -> list[Job]:
        jobs = [job for request in self._requests for job in request.waiting]
        self._requests.clear()
        self._n_waiting = self._n_tokens = 0
        return jobs

    def _drop_unwanted(self) -> None:
        now = self._clock()
        for request in self._requests:
            for job in [job for job in request.waiting if job.cancelled or job.deadline <= now]:
                self._take(request, job)
                if not job.cancelled:
                    job.settle(late(job, now))
        self._requests = deque(request for request in self._requests if request.waiting)

    def _report(self, report: BatchReport) -> None:
        now = report.source_tokens / max(report.seconds, 1e-6)
        with self._changed:
            if now:
                self._rate = now if self._rate is None else OLD_SHARE * self._rate + (1 - OLD_SHARE) * now
        if self._on_batch is not None:
            self._on_batch(report)


def _why_not_join(session: Session, join: bool | None) -> str | None:
    """Why entries don't join, where nobody asked for it. Measured by benchmarks/serve_load.py (LOG.md): on a model of
    OPUS-MT's size requests were answered sooner for it, on one of 5 MB later.
    """
    if join is not None:
        return "joining is switched off"
    if session.bundle.n_bytes <= cores.SMALL:
        return "a batch of so small a model is soon over, and joining it costs more than waiting"
    return why_whole_batches(session)
