"""What the queue does with more requests than can be done, in simulated time: the real queue and the real choice of
batches, with decoder steps that take what they took on a machine (docs/serving.md).
"""

from __future__ import annotations

import heapq
import random
from collections import namedtuple
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import pytest

from s2s_export.errors import InvalidOption
from s2s_export.serving.batcher import next_batch
from s2s_export.serving.jobs import BatchReport, Job, Overloaded
from s2s_export.serving.queueing import Queue

STEP = {1: 4.0, 2: 5.1, 4: 7.8, 8: 12.0, 16: 25.3}  # milliseconds by sources of 4 beams: OPUS-MT's size in int8
ENCODER = 0.19  # milliseconds a token
BATCH_SIZE, WORKERS, FULL = 16, 2, 41.0  # FULL: requests a second that this does
LENGTHS = (4, 48)
OPTIONS = namedtuple("Options", "n_rows coverage_penalty do_sample")(4, 0, False)
WHOLE = SimpleNamespace(joins=False, n_sources=0, present=(), n_more_kinds=lambda n: min(1, n))


def milliseconds(lengths: list[int]) -> float:
    """Of a batch of outputs as long as their sources, which leave it as they end."""
    known = list(pairwise(STEP.items()))
    taken, before = ENCODER * max(lengths) * len(lengths), 0
    for i, length in enumerate(sorted(lengths)):
        n = len(lengths) - i
        (a, cheap), (b, dear) = next(pair for pair in known if n <= pair[1][0])
        taken += (length - before) * (cheap + (dear - cheap) * max(0, n - a) / (b - a))
        before = length
    return taken


@dataclass
class Seen:
    """What became of the requests: seconds of their waiting and until their answers; the longest batch."""

    waits: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    n_refused: int = 0
    longest_batch: float = 0.0

    def p99(self) -> float:
        return sorted(self.latencies)[int(0.99 * len(self.latencies))]


def simulate(rate: float, seconds: float, max_wait: float | None, *, max_entries: int = 100_000, seed: int = 0) -> Seen:
    """Arrivals of a Poisson process. Requests of the first two seconds are not counted."""
    now, n_free, number, seen = 0.0, WORKERS, 0, Seen()
    queue = Queue(WORKERS, BATCH_SIZE, max_entries, 1 << 30, max_wait, lambda: now)
    chance, events, due = random.Random(seed), [], 0.0
    while due < seconds:
        due += chance.expovariate(rate)
        events.append((due, 0, chance.randint(*LENGTHS), None))
    heapq.heapify(events)
    while events:
        now, kind, length, batch = heapq.heappop(events)
        with queue.changed:
            if kind == 0:
                try:
                    queue.put([Job([], length, OPTIONS, False, 0, float("inf"), None, now)])
                except Overloaded as error:
                    assert error.retry_after > 0
                    seen.n_refused += now > 2
            else:
                n_free += 1
                lengths = [job.length for job in batch]
                took = milliseconds(lengths) / 1e3
                queue.learn(BatchReport((), 0, len(batch), sum(lengths), 0, 0, took))
                seen.longest_batch = max(seen.longest_batch, took)
                counted = [job for job in batch if job.arrived > 2]
                seen.waits += [now - took - job.arrived for job in counted]
                seen.latencies += [now - job.arrived for job in counted]
            while n_free and queue.n_waiting:
                batch = next_batch(queue, WHOLE, BATCH_SIZE)
                n_free, number = n_free - 1, number + 1
                heapq.heappush(events, (now + milliseconds([job.length for job in batch]) / 1e3, number, 0, batch))
    return seen


@pytest.mark.parametrize("max_wait", [0.5, 2.0])
def test_an_overload_of_ten_times_keeps_what_is_accepted_within_twice_the_time(max_wait):
    full, over = simulate(FULL, 40.0, max_wait), simulate(10 * FULL, 20.0, max_wait)
    assert over.p99() < 2 * full.p99()
    assert max(over.waits) < max_wait + 1.5 * over.longest_batch
    done = len(over.latencies) / 18.0
    assert done > 0.85 * FULL, "the server does as much as it can"
    assert over.n_refused + len(over.latencies) == pytest.approx(180 * FULL, rel=0.05)


def test_a_source_of_unusual_length_does_not_wait_for_twice_as_long_as_others():
    """In a queue that is always full: a batch's worth of others may overtake a source, and no more."""
    seen = simulate(10 * FULL, 20.0, None, max_entries=64)
    waits = sorted(seen.waits)
    assert waits[-1] < 1.6 * waits[len(waits) // 2]


def test_nothing_is_refused_that_can_be_done():
    seen = simulate(0.8 * FULL, 30.0, 2.0)
    assert seen.n_refused == 0 and seen.p99() < 2.0


def queue_of(*lengths_of_requests: list[int], max_wait: float | None = 10.0) -> Queue:
    """A queue of requests that came at 0, of which a worker takes 100 tokens a second."""
    queue = Queue(1, BATCH_SIZE, 100, 10_000, max_wait, lambda: 0.0)
    with queue.changed:
        for lengths in lengths_of_requests:
            queue.put([job(length) for length in lengths])
        queue.learn(BatchReport((), 0, 16.0, 1000, 0, 0, 10.0))
    return queue


def job(length: int, deadline: float = float("inf"), priority: int = 0) -> Job:
    return Job([], length, OPTIONS, False, 0, deadline, None, 0.0, priority)


def test_a_wait_is_that_for_the_turns_of_others_not_for_all_that_waits():
    queue = queue_of([30] * 20, [50])
    assert queue.expected_wait(1) == pytest.approx(0.8)  # the first of the twenty, and the other
    assert queue.expected_wait(10) == pytest.approx(3.5)
    assert queue.expected_wait(20) == queue.expected_wait(99) == pytest.approx(6.5)
    assert queue.expected_wait(1, priority=1) == 0.0 and queue.expected_wait(1, priority=-1) == pytest.approx(6.5)


def test_what_would_wait_too_long_is_refused_with_when_to_come_again():
    queue = queue_of([500], [400], max_wait=4.0)
    with queue.changed, pytest.raises(Overloaded, match=r"takes 9\.0 seconds.* nobody wait longer than 4;") as refused:
        queue.put([job(5)])
    assert refused.value.retry_after == pytest.approx(5.0)
    with queue.changed, pytest.raises(Overloaded, match=r"takes 9\.0 seconds"):
        queue.require_time(1, 0)  # known before there is a source
    with queue.changed:
        queue.put([job(5, priority=1)])  # urgent: it waits for nobody


def test_a_request_that_would_be_late_is_refused_at_once():
    queue = queue_of([500])
    with queue.changed, pytest.raises(Overloaded, match=r"takes 5\.0 seconds, and the request allows 3\.0;"):
        queue.put([job(5, deadline=3.0)])


def test_only_sizes_bound_the_queue_until_its_speed_is_known():
    queue = Queue(1, BATCH_SIZE, 3, 10_000, 0.001, lambda: 0.0)
    with queue.changed:
        for _ in range(3):
            queue.put([job(900)])
        with pytest.raises(Overloaded, match="no room") as refused:
            queue.put([job(1)])
    assert refused.value.retry_after == 1.0


def test_the_speed_is_that_of_full_batches():
    """A batch of one is slow for each of its tokens; an overload has none."""
    queue = queue_of([1000])
    with queue.changed:
        queue.learn(BatchReport((), 0, 1.0, 10, 0, 0, 1.0))
        assert queue.expected_wait() == pytest.approx(10.0)


def test_wrong_limits_are_refused():
    with pytest.raises(InvalidOption, match="max_wait is 0; expected seconds above 0"):
        Queue(1, 1, 1, 1, 0.0, lambda: 0.0)
    with pytest.raises(InvalidOption, match="max_entries is 0"):
        Queue(1, 1, 0, 1, None, lambda: 0.0)
