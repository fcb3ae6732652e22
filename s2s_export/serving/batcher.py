"""Decodes the sources of many requests together.

batcher = Batcher(session)
jobs = batcher.submit(sources, options)
[job.future.result() for job in jobs]

A worker that is free takes a batch of what waits; nothing waits for a batch to fill up. A batch holds entries of equal
options (`GenerationOptions` are hashable; alignments and streaming belong to the key). Its first entry is the oldest of
the request whose turn it is. Requests of the highest priority take turns, so a request of a thousand texts delays one
of a single text by no more than the batches that are being decoded. The batch is filled in rounds, in each of which
every waiting request offers the entry that is nearest in length to the first one; in a round the nearest come first.
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
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..errors import InputError, InvalidOption, S2SError, explain, is_failure
from ..runtime.cores import available_cores
from ..runtime.decoding import GenerationOptions, Hypothesis
from ..runtime.scheduling import DEFAULT_BATCH_SIZE, MOST_TOKENS
from ..runtime.session import Session
from ..runtime.sources import Source

MOST_WORKERS = 8  # beyond these, threads of one process wait for each other's turn in Python
OLD_SHARE = 0.8  # of the last estimate in the next one of tokens a second
OnPrefix = Callable[[list[int]], None]
Clock = Callable[[], float]


class Overloaded(S2SError):
    """The queue is full. retry_after: seconds after which there should be room."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLarge(InputError):
    """More than the queue ever holds."""


class DeadlinePassed(S2SError):
    pass


class Closed(Overloaded):
    """The batcher takes no more work."""


@dataclass(frozen=True)
class BatchReport:
    """A batch that was decoded. queue_seconds: how long each source waited. seconds: of the decoding."""

    queue_seconds: tuple[float, ...]
    source_tokens: int
    target_tokens: int
    steps: int
    seconds: float


@dataclass(eq=False)
class Job:
    """One source on its way. future: its hypotheses, best first, each with its text."""

    source: Source
    length: int
    options: GenerationOptions
    alignments: bool | str
    number: int
    deadline: float
    on_prefix: OnPrefix | None
    arrived: float
    future: Future[list[Hypothesis]] = field(default_factory=Future)
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody wants the result any more. The decoding of its batch goes on without it."""
        self.cancelled = True
        self.future.cancel()

    def __post_init__(self) -> None:
        # What must be equal within a batch. Options of one request are one object, which makes comparing them cheap.
        self.key = (self.options, self.alignments, self.on_prefix is not None)

    def settle(self, result: list[Hypothesis] | BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)


class Request:
    """Jobs that were submitted together, which take turns with others as one."""

    def __init__(self, jobs: Sequence[Job], priority: int) -> None:
        self.waiting = list(jobs)
        self.priority = priority

    def nearest(self, key: object, length: int) -> Job | None:
        """The waiting job of this key that is nearest in length, the oldest of several."""
        fitting = [job for job in self.waiting if job.key == key]
        return min(fitting, key=lambda job: abs(job.length - length), default=None)


class Batcher:
    """Worker threads around a session. Safe to use from several threads.

    workers: batches decoded side by side; one for each core on a CPU, and one elsewhere, if None. The session should
    have one thread for each (`load(threads=1)`).
    max_entries, max_tokens: what may wait, in sources and in source tokens.
    on_batch: called in a worker's thread after each batch.
    """

    def __init__(
        self,
        session: Session,
        *,
        workers: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_entries: int = 4096,
        max_tokens: int = 65536,
        on_batch: Callable[[BatchReport], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if workers is None:
            workers = min(MOST_WORKERS, available_cores()) if session.computes_on_cores else 1
        for name, value in (("workers", workers), ("batch_size", batch_size), ("max_entries", max_entries)):
            if value < 1:
                raise InvalidOption(f"{name} is {value}; expected at least 1")
        self.session = session
        self.workers = workers
        self.batch_size = batch_size
        self.max_entries = max_entries
        self.max_tokens = max_tokens
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
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._n_waiting or self._is_closed)
                batch = self._next_batch()
                if not batch:
                    if self._is_closed and not self._n_waiting:
                        return
                    continue
                self._n_busy += 1
            try:
                self._decode(batch)
            finally:
                with self._changed:
                    self._n_busy -= 1
                    self._changed.notify_all()

    def _next_batch(self) -> list[Job]:
        """Take a batch from the queue; [] if nothing is wanted any more."""
        self._drop_unwanted()
        if not self._requests:
            self._changed.notify_all()
            return []
        first_request = max(self._requests, key=lambda request: request.priority)  # the first of several
        first = first_request.waiting[0]
        batch = [first]
        self._take(first_request, first)
        self._requests.remove(first_request)
        self._requests.append(first_request)
        longest = first.length
        while len(batch) < self.batch_size:
            offers = [
                (-request.priority, abs(job.length - first.length), place, request, job)
                for place, request in enumerate(self._requests)
                if (job := request.nearest(first.key, first.length)) is not None
            ]
            room = self.batch_size - len(batch)
            taken = 0
            for *_, request, job in sorted(offers, key=lambda offer: offer[:3])[:room]:
                if max(longest, job.length) * (len(batch) + 1) > MOST_TOKENS:
                    continue
                longest = max(longest, job.length)
                self._take(request, job)
                batch.append(job)
                taken += 1
            if not taken:
                break
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

    def _decode(self, batch: list[Job]) -> None:
        """Decode a batch. One that fails is halved until the job that fails is alone."""
        begin = self._clock()
        try:
            found = self._decode_together(batch)
        except BaseException as error:
            if not is_failure(error):
                raise
            if len(batch) == 1:
                batch[0].settle(error if isinstance(error, S2SError) else S2SError(explain(error)))
                return
            middle = len(batch) // 2
            self._decode(batch[:middle])
            self._decode(batch[middle:])
            return
        end = self._clock()
        for job, hypotheses in zip(batch, found, strict=True):
            job.settle(hypotheses or late(job, end))
        self._report(batch, found, begin, end)

    def _decode_together(self, batch: list[Job]) -> list[list[Hypothesis]]:
        def wanted(i: int) -> bool:
            return not batch[i].cancelled and batch[i].deadline > self._clock()

        def on_prefix(i: int, ids: list[int]) -> None:
            tell = batch[i].on_prefix
            if tell is not None and not batch[i].cancelled:
                tell(ids)

        first = batch[0]
        return self.session.decode_batch(
            [job.source for job in batch],
            first.options,
            alignments=first.alignments,
            source_numbers=[job.number for job in batch],
            wanted=wanted,
            on_prefix=on_prefix if first.on_prefix is not None else None,
        )

    def _report(self, batch: list[Job], found: list[list[Hypothesis]], begin: float, end: float) -> None:
        n_tokens = sum(job.length for job in batch)
        now = n_tokens / max(end - begin, 1e-6)
        with self._changed:
            self._rate = now if self._rate is None else OLD_SHARE * self._rate + (1 - OLD_SHARE) * now
        if self._on_batch is None:
            return
        generated = [len(hypotheses[0].token_scores) for hypotheses in found if hypotheses]
        waited = tuple(begin - job.arrived for job in batch)
        steps = max((len(h.token_scores) for of_source in found for h in of_source), default=0)
        self._on_batch(BatchReport(waited, n_tokens, sum(generated), steps, end - begin))


def late(job: Job, now: float) -> DeadlinePassed:
    return DeadlinePassed(
        f"the text was not decoded within {now - job.arrived:.1f} seconds, the time that was allowed; send less, or "
        "allow more time"
    )
