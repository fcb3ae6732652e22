"""What waits to be decoded: whose turn it is, and how much may wait.

Requests of the highest priority take turns, so a request of a thousand sources delays one of a single source by no more
than the batches that are being decoded.

A batch is the source whose turn it is and those nearest to it in length. Left to itself, that lets a source of unusual
length wait for twice as long as others in a full queue. So a request that a whole batch's worth of sources overtook
comes before all that fewer did, whatever its length.

The queue is bounded in entries, in source tokens, and in time: a request that would wait longer than `max_wait`, or
than its own time-out, is refused at once with the time after which there should be room. What is expected is the
source tokens that come before its last source, by the order of turns, over the tokens a second that full batches take.
So an overload keeps its answers waiting `max_wait` at most, however many requests there are beyond what can be done.
Until the first batch is done nothing is known of the speed, and only the sizes bound the queue.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import InvalidOption
from .jobs import BatchReport, Closed, Job, Overloaded, Request, TooLarge, late

OLD_SHARE = 0.8  # of the last estimate in the next one of tokens a second
Fits = Callable[[Job], bool]


class Queue:
    """Requests that wait. Hold `changed` for every method; it is told of what comes and goes.

    n_takers: batches that are decoded side by side. batch_size: most sources of each. max_entries, max_tokens: what may
    wait, in sources and source tokens. max_wait: seconds that a request may be expected to wait; None for any time.
    is_closed: no more is taken in. version [1]: changes with every request that comes in or source that is given up.
    """

    def __init__(
        self,
        n_takers: int,
        batch_size: int,
        max_entries: int,
        max_tokens: int,
        max_wait: float | None,
        clock: Callable[[], float],
    ) -> None:
        if max_entries < 1:
            raise InvalidOption(f"max_entries is {max_entries}; expected at least 1")
        if max_wait is not None and max_wait <= 0:
            raise InvalidOption(f"max_wait is {max_wait:g}; expected seconds above 0")
        self.changed = threading.Condition()
        self.is_closed = False
        self.version = np.zeros(1, dtype=np.int64)
        self.n_waiting = 0
        self.n_tokens = 0
        self._n_takers = n_takers
        self._batch_size = batch_size
        self._max_entries = max_entries
        self._max_tokens = max_tokens
        self._max_wait = max_wait
        self._clock = clock
        self._requests: deque[Request] = deque()
        self._n_taken = 0  # sources that were decoded, or are
        self._rates: dict[int, float] = {}  # source tokens a second of one taker, by the binary digits of its batch

    def put(self, jobs: Sequence[Job]) -> None:
        """Take in the sources of a request: all of them, or none. Raises Overloaded, TooLarge, Closed."""
        n_tokens = sum(job.length for job in jobs)
        if self.is_closed:
            raise Closed("the server is stopping; send this to another one, or again when it is back", 1.0)
        if len(jobs) > self._max_entries or n_tokens > self._max_tokens:
            raise TooLarge(
                f"the request has {len(jobs)} texts of {n_tokens} tokens together; expected at most "
                f"{self._max_entries} and {self._max_tokens}; send it in parts"
            )
        if not jobs:
            return
        self.drop_unwanted()
        self._require_room(jobs, n_tokens)
        for job in jobs:
            job.version = self.version
        self._requests.append(Request(jobs, self._n_taken))
        self.n_waiting += len(jobs)
        self.n_tokens += n_tokens
        self.version += 1
        self.changed.notify(len(jobs))

    def _require_room(self, jobs: Sequence[Job], n_tokens: int) -> None:
        wait = self.expected_wait(len(jobs), jobs[0].priority)
        if self.n_waiting + len(jobs) > self._max_entries or self.n_tokens + n_tokens > self._max_tokens:
            more = f"{self._full()}, and there is no room for {n_tokens} tokens more; send it again later"
            raise Overloaded(more, wait or 1.0)
        if wait:
            self.require_time(len(jobs), jobs[0].priority)
            allowed = min(job.deadline for job in jobs) - self._clock()
            if wait > allowed:
                raise Overloaded(
                    f"{self._full()}, which takes {wait:.1f} seconds, and the request allows {max(0.0, allowed):.1f}; "
                    "send it again later, or allow more time",
                    wait - allowed,
                )

    def require_time(self, n: int, priority: int) -> None:
        """Raises Overloaded where a request of n sources would wait for too long now."""
        if self._max_wait is None or not self.n_waiting:
            return
        wait = self.expected_wait(n, priority)
        if wait > self._max_wait:
            raise Overloaded(
                f"{self._full()}, which takes {wait:.1f} seconds, and this server lets nobody wait longer than "
                f"{self._max_wait:g}; send it again later",
                wait - self._max_wait,
            )

    def _full(self) -> str:
        return f"{self.n_waiting} texts of {self.n_tokens} tokens are waiting"

    def expected_wait(self, n: int = 1, priority: int = 0) -> float:
        """Seconds until a request of n sources that comes now has begun, by the speed measured so far; 0 if unknown."""
        rate = self._rates[max(self._rates)] if self._rates else 0.0
        if not rate:
            return 0.0
        before = 0.0
        for request in self._requests:
            if request.priority > priority:
                before += request.n_tokens
            elif request.priority == priority:
                before += request.n_tokens * min(1.0, n / len(request.waiting))
        return before / (rate * self._n_takers)

    def first(self) -> Job | None:
        """The source whose turn it is."""
        request = self._of_highest_priority()
        return None if request is None else request.waiting[0]

    def _of_highest_priority(self) -> Request | None:
        return max(self._requests, key=lambda request: request.priority, default=None)  # the first of several

    def take_first(self) -> Job | None:
        """Take the source whose turn it is. Its request is last then."""
        request = self._of_highest_priority()
        if request is None:
            return None
        job = request.waiting[0]
        self._give(request, job)
        self._requests.remove(request)
        if request.waiting:
            self._requests.append(request)
        return job

    def take_round(self, fits: Fits, length: int) -> Iterator[Job]:
        """Take from each request the source that fits and is nearest in length; those that others overtook come first,
        and then the nearest. `fits` is asked again before each is taken, as there may be less room after every one."""
        offers = [
            (-request.priority, -self._n_overtaken(request), abs(job.length - length), place, request, job)
            for place, request in enumerate(self._requests)
            if (job := request.nearest(fits, length)) is not None
        ]
        for *_, request, job in sorted(offers, key=lambda offer: offer[:4]):
            if fits(job):
                self._give(request, job)
                yield job
        self._requests = deque(request for request in self._requests if request.waiting)

    def take_all(self) -> list[Job]:
        jobs = [job for request in self._requests for job in request.waiting]
        self._requests.clear()
        self.n_waiting = self.n_tokens = 0
        return jobs

    def drop_unwanted(self) -> None:
        """Settle and forget what nobody wants any more, or what is too late."""
        now = self._clock()
        for request in self._requests:
            for job in [job for job in request.waiting if job.cancelled or job.deadline <= now]:
                self._take(request, job)
                if not job.cancelled:
                    job.settle(late(job, now))
        self._requests = deque(request for request in self._requests if request.waiting)

    def _n_overtaken(self, request: Request) -> int:
        """How many batches were filled since the request came, or since a source of it was taken."""
        return (self._n_taken - request.since) // self._batch_size

    def _give(self, request: Request, job: Job) -> None:
        self._take(request, job)
        self._n_taken += 1
        request.since = self._n_taken

    def _take(self, request: Request, job: Job) -> None:
        request.take(job)
        self.n_waiting -= 1
        self.n_tokens -= job.length

    def learn(self, report: BatchReport) -> None:
        """Note how fast a batch went. What counts is the fullest batches: an overload has no others."""
        if report.source_tokens:
            size = max(1, round(report.n_together)).bit_length()
            now = report.source_tokens / max(report.seconds, 1e-6)
            before = self._rates.get(size)
            self._rates[size] = now if before is None else OLD_SHARE * before + (1 - OLD_SHARE) * now
