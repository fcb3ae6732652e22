"""The batcher: what shares a batch, who comes first, what is refused, and who leaves."""

from __future__ import annotations

import threading
import time
from collections import defaultdict

import numpy as np
import pytest

from s2s_export.errors import InputError, S2SError
from s2s_export.serving.batcher import Batcher, Closed, DeadlinePassed, Overloaded, TooLarge

TEXTS = ["seventeen", "one thousand two hundred and five", "half past three", "the third of March 1998", "21st"]


class Gate:
    """Stands before a session's `decode_batch`: holds batches back, and notes what they were made of."""

    def __init__(self, session, monkeypatch):
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Semaphore(0)
        self.batches: list[list] = []
        self.fails = lambda batch: False
        original = session.decode_batch

        def decode_batch(batch, options, **more):
            self.batches.append([tuple(source) for source in batch])
            self.begun.release()
            assert self.open.wait(60)
            if self.fails(batch):
                raise InputError("this one can't be decoded")
            return original(batch, options, **more)

        monkeypatch.setattr(session, "decode_batch", decode_batch)


@pytest.fixture
def gate(session, monkeypatch):
    return Gate(session, monkeypatch)


@pytest.fixture
def batcher(session, gate):
    made = Batcher(session, workers=1, batch_size=4)
    yield made
    gate.open.set()
    made.close(timeout=60)


def source(length: int, seed: int = 0) -> list[int]:
    return [*np.random.default_rng(seed).integers(4, 300, length - 1).tolist(), 0]


def blocked(gate, batcher, options):
    """Occupy the only worker, so that what follows waits."""
    gate.open.clear()
    job = batcher.submit([source(3, 99)], options)[0]
    assert gate.begun.acquire(timeout=60)
    gate.batches.clear()
    return job


def test_results_are_those_of_each_source_alone(session):
    options = session.options(target_lang="fra", num_beams=3, num_return_sequences=2)
    sources = [session.encode(text, target_lang="fra") for text in TEXTS * 4]
    batcher = Batcher(session, workers=2, batch_size=6)
    jobs = [job for source in sources for job in batcher.submit([source], options)]
    found = [job.future.result(60) for job in jobs]
    assert batcher.close(60)
    for mine, of_source in zip(found, sources, strict=True):
        alone = session.decode([of_source], options)[0]
        assert [h.token_ids for h in mine] == [h.token_ids for h in alone]
        assert [h.text for h in mine] == [h.text for h in alone]


def test_samples_depend_on_the_place_in_the_request_alone(session):
    options = session.options(num_beams=1, do_sample=True, seed=5, max_new_tokens=8)
    sources = [source(4, seed) for seed in range(6)]
    batcher = Batcher(session, workers=1, batch_size=16)
    others = batcher.submit([source(5, 50)] * 3, options)
    jobs = batcher.submit(sources, options)
    found = [job.future.result(60)[0].token_ids for job in (*others, *jobs)][3:]
    batcher.close(60)
    assert found == [of_source[0].token_ids for of_source in session.decode(sources, options)]


def test_equal_options_share_a_batch_and_others_do_not(session, gate, batcher):
    one, other = session.options(num_beams=1), session.options(num_beams=2)
    blocked(gate, batcher, one)
    for options in (one, other, one, other):
        batcher.submit([source(4)], options)
    gate.open.set()
    assert batcher.close(60)
    assert sorted(map(len, gate.batches)) == [2, 2]


def test_the_oldest_is_first_and_the_nearest_in_length_join_it(session, gate, batcher):
    options = session.options(num_beams=1)
    blocked(gate, batcher, options)
    for length in (10, 30, 11, 29, 9, 31, 12, 28):
        batcher.submit([source(length)], options)
    gate.open.set()
    assert batcher.close(60)
    assert [sorted(map(len, batch)) for batch in gate.batches] == [[9, 10, 11, 12], [28, 29, 30, 31]]
    assert len(gate.batches[0][0]) == 10


def test_a_request_of_many_texts_does_not_hold_up_one_of_a_single_text(session, gate, batcher):
    options = session.options(num_beams=1)
    blocked(gate, batcher, options)
    batcher.submit([source(6, seed) for seed in range(40)], options)
    single = source(20, 7)
    batcher.submit([single], options)
    gate.open.set()
    assert batcher.close(60)
    assert tuple(single) in gate.batches[0]
    assert len(gate.batches) == 11


def test_every_request_gets_its_turn(session, gate, batcher):
    one, other = session.options(num_beams=1), session.options(num_beams=2)
    blocked(gate, batcher, one)
    batcher.submit([source(6, seed) for seed in range(40)], one)
    late = source(9, 3)
    batcher.submit([late], other)
    gate.open.set()
    assert batcher.close(60)
    assert gate.batches[1] == [tuple(late)]


def test_higher_priorities_go_first(session, gate, batcher):
    options = session.options(num_beams=1)
    blocked(gate, batcher, options)
    batcher.submit([source(6, seed) for seed in range(8)], options, priority=-1)
    urgent = source(30, 9)
    batcher.submit([urgent], options, priority=5)
    gate.open.set()
    assert batcher.close(60)
    assert gate.batches[0][0] == tuple(urgent)


def test_a_full_queue_says_when_to_come_again_and_takes_a_request_whole_or_not_at_all(session, gate):
    batcher = Batcher(session, workers=1, batch_size=4, max_entries=5, max_tokens=40)
    options = session.options(num_beams=1)
    blocked(gate, batcher, options)
    batcher.submit([source(10)] * 3, options)
    with pytest.raises(Overloaded, match="3 texts of 30 tokens are waiting") as refused:
        batcher.submit([source(10)] * 2, options)
    assert refused.value.retry_after > 0
    assert (batcher.n_waiting, batcher.n_waiting_tokens) == (3, 30)
    with pytest.raises(TooLarge, match="send it in parts"):
        batcher.submit([source(10)] * 5, options)
    gate.open.set()
    assert batcher.close(60)
    assert (batcher.n_waiting, batcher.n_waiting_tokens) == (0, 0)
    with pytest.raises(Closed, match="stopping"):
        batcher.submit([source(3)], options)


def test_cancelled_and_late_entries_are_never_decoded(session, gate):
    now = [0.0]
    batcher = Batcher(session, workers=1, batch_size=4, clock=lambda: now[0])
    options = session.options(num_beams=1)
    blocked(gate, batcher, options)
    gone, late, kept = (batcher.submit([source(5, seed)], options, timeout=10.0 + seed)[0] for seed in (1, 0, 2))
    gone.cancel()
    now[0] = 10.5
    gate.open.set()
    assert kept.future.result(60)
    with pytest.raises(DeadlinePassed, match=r"within 10\.5 seconds"):
        late.future.result(60)
    assert gone.future.cancelled()
    assert gate.batches == [[tuple(kept.source)]]
    batcher.close(60)


@pytest.mark.parametrize("beams", [1, 3])
def test_one_that_leaves_in_the_middle_of_a_decode_does_not_disturb_the_others(session, beams):
    """The job that streams cancels another one from within the decoding, after its first tokens."""
    options = session.options(num_beams=beams, max_new_tokens=12, min_new_tokens=12)
    sources = [source(6, seed) for seed in range(3)]
    alone = [of_source[0].token_ids for of_source in session.decode(sources, options)]
    told: defaultdict[int, list] = defaultdict(list)
    asked: list[int] = []
    unwanted: set[int] = set()

    def on_prefix(i, ids):
        told[i] += ids
        if len(told[0]) > 4:
            unwanted.add(1)

    def wanted(i):
        asked.append(i)
        return i not in unwanted

    found = session.decode_batch(sources, options, wanted=wanted, on_prefix=on_prefix)
    assert [bool(of_source) for of_source in found] == [True, False, True]
    assert [found[i][0].token_ids for i in (0, 2)] == [alone[0], alone[2]]
    assert told[0] == alone[0] and told[2] == alone[2] and len(told[1]) < len(alone[1])
    assert asked.count(1) < asked.count(0)


def test_a_decode_that_nobody_wants_ends(session):
    steps = []
    found = session.decode_batch(
        [source(6)], session.options(num_beams=1), wanted=lambda i: steps.append(i) or len(steps) < 3
    )
    assert found == [[]] and len(steps) == 3


def test_a_job_cancelled_while_it_is_decoded_frees_its_worker(session):
    batcher = Batcher(session, workers=1)
    options = session.options(num_beams=2, min_new_tokens=200, max_new_tokens=200)
    begun, seen = threading.Event(), []

    def on_prefix(ids):
        seen.extend(ids)
        begun.set()
        time.sleep(0.01)

    job = batcher.submit([source(6)], options, on_prefix=on_prefix)[0]
    assert begun.wait(60)
    job.cancel()
    assert batcher.close(60)
    assert job.future.cancelled() and len(seen) < 200


def test_streamed_pieces_are_the_tokens(session):
    batcher = Batcher(session, workers=1)
    pieces: list[int] = []
    options = session.options(num_beams=3)
    job = batcher.submit([source(8)], options, on_prefix=pieces.extend)[0]
    assert job.future.result(60)[0].token_ids == pieces
    batcher.close(60)


def test_a_source_that_fails_does_not_take_others_with_it(session, gate, batcher):
    options = session.options(num_beams=1)
    blocked(gate, batcher, options)
    bad = source(7, 1)
    gate.fails = lambda batch: bad in [list(item) for item in batch]
    jobs = [batcher.submit([item], options)[0] for item in (source(5), bad, source(6), source(8))]
    gate.open.set()
    outcomes = [job.future.exception(60) for job in jobs]
    assert [isinstance(outcome, S2SError) for outcome in outcomes] == [False, True, False, False]


def test_many_clients_at_random(session):
    """Hundreds of arrivals with random options, cancellations and priorities: every answer is its source's own."""
    rng = np.random.default_rng(0)
    batcher = Batcher(session, workers=2, batch_size=8)
    choices = [session.options(num_beams=beams, max_new_tokens=6) for beams in (1, 2)]
    jobs = []
    for number in range(300):
        options = choices[rng.integers(2)]
        item = source(int(rng.integers(2, 20)), number)
        job = batcher.submit([item], options, priority=int(rng.integers(3)))[0]
        if rng.random() < 0.2:
            job.cancel()
        else:
            jobs.append(job)
    found = [(job, job.future.result(60)[0].token_ids) for job in jobs]
    assert batcher.close(60)
    for options in choices:
        mine = [(job.source, ids) for job, ids in found if job.options == options]
        alone = session.decode([item for item, _ in mine], options)
        assert [ids for _, ids in mine] == [of_source[0].token_ids for of_source in alone]


@pytest.mark.parametrize(
    "how",
    [{"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"num_beams": 2, "force_words_ids": [[209]]}],
    ids=["groups", "constrained"],
)
def test_one_may_leave_every_kind_of_search(session, how):
    options = session.options(max_new_tokens=12, min_new_tokens=10, **how)
    sources = [source(6, seed) for seed in range(3)]
    alone = [of_source[0].token_ids for of_source in session.decode(sources, options)]
    n_asked = [0, 0, 0]

    def wanted(i):
        n_asked[i] += 1
        return i != 1 or n_asked[1] < 4

    found = session.decode_batch(sources, options, wanted=wanted)
    assert found[1] == [] and [found[i][0].token_ids for i in (0, 2)] == [alone[0], alone[2]]
