"""Entries that join a batch between two steps: whose results are whose, who comes in, who leaves, what is reported."""

from __future__ import annotations

import re
import shutil
import threading
import time
import weakref

import numpy as np
import pytest
from click.testing import CliRunner
from serving_client import serving

import s2s_export
from s2s_export.building.build import build
from s2s_export.cli import doctor, serve
from s2s_export.errors import BackendError, S2SError
from s2s_export.measuring.machine import describe
from s2s_export.runtime.decoding import joining as decoding_joining
from s2s_export.runtime.joining import OpenDecoding
from s2s_export.serving import joined
from s2s_export.serving.batcher import Batcher, DeadlinePassed


@pytest.fixture(scope="session")
def engine(words, tmp_path_factory):
    path = tmp_path_factory.mktemp("joined") / "en-mul"
    shutil.copytree(words, path)
    build(path, "cpu-fp32")
    return path


@pytest.fixture(scope="session")
def joining(engine):
    return s2s_export.load(engine, target="cpu-fp32", threads=1)


@pytest.fixture(autouse=True)
def alone_if_need_be(monkeypatch):
    """Sources come in one by one although the steps of this model are short."""
    monkeypatch.setattr(decoding_joining, "SEARCH_SHARE", 1e9)


class Steps:
    """Lets an open batch make steps only when it is told to."""

    def __init__(self, monkeypatch):
        self.made = 0
        self.allowed = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)  # given back whenever a batch stands before a step
        self.fails = False
        original = OpenDecoding.advance

        def advance(decoding, until):
            self.waiting.release()
            assert self.allowed.acquire(timeout=60)
            self.made += 1
            if self.fails:
                self.fails = False
                raise BackendError("the step failed")
            original(decoding)  # one step

        monkeypatch.setattr(OpenDecoding, "advance", advance)

    def make(self, n: int) -> None:
        """Make n steps, and wait until the batch stands before the next one."""
        for _ in range(n):
            assert self.waiting.acquire(timeout=60)
            self.allowed.release()
        assert self.waiting.acquire(timeout=60)
        self.waiting.release()

    def run(self) -> None:
        self.allowed.release(100_000)


@pytest.fixture
def steps(monkeypatch):
    made = Steps(monkeypatch)
    yield made
    made.run()


def source(length: int, seed: int = 0) -> list[int]:
    return [*np.random.default_rng(seed).integers(4, 300, length - 1).tolist(), 0]


def ids(job):
    return [hypothesis.token_ids for hypothesis in job.future.result(60)]


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def alone(session, job):
    [found] = session.decode_batch([job.source], job.options, source_numbers=[job.number])
    return [hypothesis.token_ids for hypothesis in found]


def test_many_clients_at_random(joining):
    """Requests of one to four texts, of several kinds, by two workers; some are cancelled on their way."""
    rng = np.random.default_rng(0)
    reports = []
    batcher = Batcher(joining, join=True, workers=2, batch_size=8, on_batch=reports.append)
    assert batcher.why_whole is None
    choices = [
        joining.options(max_new_tokens=8, **how)
        for how in ({"num_beams": 1}, {"num_beams": 1, "no_repeat_ngram_size": 2}, {"num_beams": 2},
                    {"num_beams": 2, "length_penalty": 0.2}, {"num_beams": 1, "do_sample": True, "seed": 4})
    ]  # fmt: skip
    jobs = []
    for number in range(150):
        sources = [source(int(rng.integers(2, 24)), 4 * number + i) for i in range(rng.integers(1, 5))]
        submitted = batcher.submit(sources, choices[rng.integers(5)], priority=int(rng.integers(2)))
        jobs += submitted
        if rng.random() < 0.15:
            submitted[0].cancel()
        if rng.random() < 0.3:
            time.sleep(0.002)
    assert batcher.close(120)
    wanted = [job for job in jobs if not job.cancelled]
    for job in wanted[::3]:
        assert ids(job) == alone(joining, job)
    assert all(job.future.done() for job in jobs)
    assert sum(len(report.queue_seconds) for report in reports) >= len(wanted)
    assert sum(report.n_joined for report in reports) > 0
    assert max(report.n_together for report in reports) > 2


def test_a_newcomer_comes_in_and_leaves_while_others_are_decoded(joining, steps):
    reports = []
    batcher = Batcher(joining, join=True, workers=1, on_batch=reports.append)
    long = batcher.submit([source(9, 1)], joining.options(num_beams=2, min_new_tokens=40, max_new_tokens=40))[0]
    steps.make(5)
    short = batcher.submit([source(20, 2)], joining.options(num_beams=2, max_new_tokens=3))[0]
    steps.make(6)
    assert ids(short) == alone(joining, short)
    assert not long.future.done()
    steps.run()
    assert ids(long) == alone(joining, long)
    assert batcher.close(60)
    assert sum(report.n_joined for report in reports) == 1 and steps.made == 40


def test_an_empty_batch_stays_open_for_sources_of_as_many_beams_and_is_given_back(joining, monkeypatch):
    opened = []
    original = OpenDecoding.__init__

    def opens(decoding, session, n_rows, most_sources):
        opened.append((n_rows, weakref.ref(decoding)))
        original(decoding, session, n_rows, most_sources)

    monkeypatch.setattr(OpenDecoding, "__init__", opens)
    monkeypatch.setattr(joined, "KEPT", 60.0)
    reports = []
    batcher = Batcher(joining, join=True, workers=1, on_batch=reports.append)
    for seed, beams in enumerate((2, 2, 1, 1, 2)):
        [job] = batcher.submit([source(5 + seed, seed)], joining.options(num_beams=beams, max_new_tokens=6))
        assert ids(job) == alone(joining, job)
        wait_until(lambda: batcher.is_idle)
        if seed == 3:
            assert [n for n, _ in opened] == [2, 1]
            monkeypatch.setattr(joined, "KEPT", 0.01)
    assert [n for n, _ in opened] == [2, 1, 2]
    assert all(1 <= report.steps <= 6 and report.n_together == 1 for report in reports) and len(reports) == 5
    wait_until(lambda: not any(made() for _, made in opened))
    assert batcher.close(60)


def test_nobody_overtakes_one_who_can_not_come_in(joining, steps):
    """One of other beams waits: the batch takes nobody in any more, runs empty, and that one is next."""
    batcher = Batcher(joining, join=True, workers=1, batch_size=8)
    one = joining.options(num_beams=1, min_new_tokens=6, max_new_tokens=6)
    other = joining.options(num_beams=3, min_new_tokens=2, max_new_tokens=2)
    first = batcher.submit([source(5)], one)[0]
    steps.make(1)
    different = batcher.submit([source(6)], other)[0]
    later = batcher.submit([source(7)], one)[0]
    steps.make(7)  # five more for the first, two for the other
    assert first.future.done() and ids(different) == alone(joining, different)
    assert not later.future.done()
    steps.run()
    assert ids(later) == alone(joining, later)
    assert batcher.close(60)


def test_a_batch_holds_no_more_than_its_size(joining, steps):
    batcher = Batcher(joining, join=True, workers=1, batch_size=3)
    options = joining.options(num_beams=1, min_new_tokens=4, max_new_tokens=4)
    jobs = batcher.submit([source(4, seed) for seed in range(2)], options)
    steps.make(1)
    jobs += batcher.submit([source(4, seed) for seed in range(2, 6)], options)
    steps.make(1)
    assert batcher.n_waiting == 3
    steps.run()
    assert [ids(job) for job in jobs] == [alone(joining, job) for job in jobs]
    assert batcher.close(60)


def test_cancelled_and_late_ones_leave_in_the_middle(joining, steps):
    now = [0.0]
    batcher = Batcher(joining, join=True, workers=1, clock=lambda: now[0])
    options = joining.options(num_beams=2, min_new_tokens=30, max_new_tokens=30)
    gone, late = (batcher.submit([source(5, seed)], options, timeout=10.0 + seed)[0] for seed in range(2))
    kept = batcher.submit([source(5, 7)], options)[0]
    steps.make(4)
    gone.cancel()
    steps.make(2)
    now[0] = 11.5
    steps.make(2)
    with pytest.raises(DeadlinePassed, match=r"within 11\.5 seconds"):
        late.future.result(60)
    assert gone.future.cancelled() and not kept.future.done()
    steps.run()
    assert ids(kept) == alone(joining, kept)
    assert batcher.close(60)


def test_streams_join_and_a_failed_step_repeats_nothing(joining, steps):
    """After a step that fails, what was in the batch is decoded in whole batches."""
    batcher = Batcher(joining, join=True, workers=1)
    pieces: list[int] = []
    options = joining.options(num_beams=2, min_new_tokens=12, max_new_tokens=12)
    other = batcher.submit([source(5, 3)], options)[0]
    steps.make(2)
    job = batcher.submit([source(8)], options, on_prefix=pieces.extend)[0]
    steps.make(6)
    steps.fails = True
    steps.run()
    assert ids(job) == alone(joining, job) and pieces == ids(job)[0]
    assert ids(other) == alone(joining, other)
    after = batcher.submit([source(6, 4)], options)[0]
    assert ids(after) == alone(joining, after)
    assert batcher.close(60)


def test_one_that_fails_does_not_take_its_cohort_with_it(joining):
    batcher = Batcher(joining, join=True, workers=1, batch_size=8)
    options = joining.options(num_beams=2, max_new_tokens=4, terms=[("twenty", "cent vingt et un mille")])
    texts = ["seventeen", "twenty", "three"]
    jobs = batcher.submit([joining.encode(text, target_lang="fra") for text in texts], options)
    outcomes = [job.future.exception(60) for job in jobs]
    assert [isinstance(outcome, S2SError) for outcome in outcomes] == [False, True, False]
    assert batcher.close(60)


def test_closing_finishes_what_is_there_and_fails_what_waits(joining, steps):
    batcher = Batcher(joining, join=True, workers=1, batch_size=1)
    options = joining.options(num_beams=1, min_new_tokens=5, max_new_tokens=5)
    first, second = batcher.submit([source(4), source(5)], options)
    steps.make(1)
    assert not batcher.close(timeout=0.05)
    with pytest.raises(S2SError, match="stopped before"):
        second.future.result(60)
    steps.run()
    assert ids(first) == alone(joining, first)


def test_joining_can_be_switched_off(joining):
    batcher = Batcher(joining, workers=1, join=False)
    assert batcher.why_whole == "joining is switched off"
    job = batcher.submit([source(5)], joining.options(num_beams=2))[0]
    assert ids(job) == alone(joining, job)
    assert batcher.close(60)


def test_a_small_model_joins_only_where_that_is_asked_for(joining):
    batcher = Batcher(joining, workers=1)
    assert "so small a model is soon over" in batcher.why_whole
    assert batcher.close(60)


def test_doctor_says_which_engines_let_sources_join(engine):
    found = describe(engine)["joined_batches"]
    assert list(found) == ["portable", "cpu-fp32"]
    assert found["cpu-fp32"] is None and "s2s build" in found["portable"]
    (engine / "engines" / "cpu-fp16").mkdir()
    (engine / "engines" / "cpu-fp16" / "engine.json").write_text("{}")
    try:
        done = CliRunner().invoke(doctor.command, [str(engine)])
        assert done.exit_code, "an engine that can't be read is told as an error"
    finally:
        shutil.rmtree(engine / "engines" / "cpu-fp16")
    done = CliRunner().invoke(doctor.command, [str(engine)])
    assert re.search(r"^  cpu-fp32 +yes$", done.output, re.MULTILINE), done.output
    assert re.search(r"^  portable +no: the portable graphs have one position", done.output, re.MULTILINE)


@pytest.mark.parametrize("flag", ["--join", "--no-join"])
def test_a_flag_of_serve_says_whether_sources_join(engine, flag, monkeypatch):
    """The model is small, so it has whole batches unless that is asked for."""
    made = []
    monkeypatch.setattr("s2s_export.serving.server.make_server", lambda state, *_, **__: made.append(state) or Ended())
    done = CliRunner().invoke(serve.command, [str(engine), "--port", "0", "--workers", "1", flag])
    assert done.exit_code == 0, done.output
    [state] = made
    assert (state.models.first.batcher.why_whole is None) == (flag == "--join")
    state.models.close(60)


class Ended:
    """A server that was stopped before it began."""

    def run(self, sockets):
        for each in sockets:
            each.close()


def test_the_server_says_who_joins(engine, words, tmp_path):
    lines: list[str] = []
    with serving([f"fast={engine}", f"portable={words}"], workers=1, join=True, progress=lines.append) as served:
        figures = served.get("/metrics").body.decode()
        assert 's2s_joins_batches{bundle="fast"} 1.0' in figures
        assert 's2s_joins_batches{bundle="portable"} 0.0' in figures
        assert [line for line in lines if "batches are decoded whole" in line] == [
            "portable: batches are decoded whole, as the portable graphs have one position for all sources of a batch; "
            f"run: s2s build {words} --target cpu-fp32"
        ]
        cards = {card["name"]: card for card in served.get("/v1/s2s/model").json()["models"]}
        assert (cards["fast"]["joins_batches"], cards["portable"]["joins_batches"]) == (True, False)
