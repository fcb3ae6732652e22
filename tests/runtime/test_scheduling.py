"""Batches by length and tokens, workers side by side, results in input order."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import s2s_export
from s2s_export.errors import InputError, InvalidOption
from s2s_export.runtime import cores, scheduling


def test_batches_are_of_neighbours_in_length():
    lengths = [3, 9, 4, 8, 1]
    assert scheduling.plan_batches(lengths, 2) == [[1, 3], [2, 0], [4]]


def test_long_sources_make_small_batches():
    lengths = [scheduling.MOST_TOKENS // 2] * 3 + [scheduling.MOST_TOKENS * 2, 1]
    batches = scheduling.plan_batches(lengths, 16)
    assert batches[0] == [3]
    assert all(len(b) == 1 or lengths[b[0]] * len(b) <= scheduling.MOST_TOKENS for b in batches)
    assert sorted(i for b in batches for i in b) == list(range(5))


def test_workers_share_what_would_fit_one_batch():
    assert [len(b) for b in scheduling.plan_batches([5] * 10, 16, n_workers=3)] == [4, 4, 2]
    assert scheduling.plan_batches([], 16, 4) == []


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": 2, "n_workers": 0}])
def test_counts_below_one_are_refused(bad):
    with pytest.raises(InvalidOption, match="at least 1"):
        scheduling.plan_batches([1, 2], **bad)


def test_batches_run_side_by_side():
    meet = threading.Barrier(3, timeout=10)

    def decode(batch):
        meet.wait()
        return sum(batch)

    found = dict((tuple(b), r) for b, r in scheduling.run([[0], [1], [2]], decode, 3))
    assert found == {(0,): 0, (1,): 1, (2,): 2}


def test_the_first_error_ends_it():
    begun = []

    def decode(batch):
        begun.append(batch)
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        list(scheduling.run([[i] for i in range(50)], decode, 2))
    assert len(begun) < 50
    assert not [t for t in threading.enumerate() if t.name.startswith("s2s-worker")]


def test_workers_change_no_tokens(exported):
    path = exported("marian")[1]
    rng = np.random.default_rng(2)
    sources = [rng.integers(3, 50, size=n).tolist() for n in rng.integers(1, 12, size=23)]
    expected = s2s_export.load(path, "onnxruntime", threads=1).generate(sources, num_beams=3, batch_size=4)
    told = []
    session = s2s_export.load(path, "onnxruntime", workers=3)
    assert session.workers == 3
    found = session.decode(
        sources, session.options(num_beams=3), batch_size=4, on_batch=lambda indices, _: told.extend(indices)
    )
    assert [h[0].token_ids for h in found] == [h[0].token_ids for h in expected]
    assert sorted(told) == list(range(23))


def test_workers_below_one_are_refused(exported):
    with pytest.raises(InvalidOption, match="workers is 0"):
        s2s_export.load(exported("marian")[1], workers=0)


def test_as_many_workers_as_the_cores_allow(exported, monkeypatch):
    monkeypatch.setattr(scheduling, "available_cores", lambda: 6)
    assert scheduling.workers_of(None, None) == 6
    assert scheduling.workers_of(None, 2) == 3
    assert scheduling.workers_of(None, 8) == 1


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups /a/b, and this process in b."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/a/b\n")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def test_cores_are_those_of_the_container(groups):
    assert cores.available_cores() == 8
    (groups / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cores.available_cores() == 8
    (groups / "a" / "cpu.max").write_text("250000 100000\n")
    assert cores.available_cores() == 3
    (groups / "a" / "b" / "cpu.max").write_text("50000 100000\n")
    assert cores.available_cores() == 1
    (groups / "own").unlink()
    assert cores.available_cores() == 8


def test_threads_are_no_more_than_cores(groups):
    assert [cores.threads_for(n) for n in (None, 1, 3, 8, 1000)] == [4, 1, 3, 8, 8]
    (groups / "a" / "cpu.max").write_text("200000 100000\n")
    assert [cores.threads_for(n) for n in (None, 1, 3, 1000)] == [2, 1, 2, 2]
    assert [cores.threads_for(n, cores.SMALL) for n in (None, 1, 3)] == [1, 1, 2]


def test_a_session_of_a_thousand_threads_has_as_many_as_cores_and_they_sleep(bundled, monkeypatch):
    import onnxruntime

    made, path = [], bundled("t5")
    monkeypatch.setattr(
        onnxruntime, "SessionOptions", lambda make=onnxruntime.SessionOptions: made.append(make()) or made[-1]
    )
    session = s2s_export.load(path, "onnxruntime", threads=1000)
    assert session.backend.threads == cores.available_cores()
    assert {options.intra_op_num_threads for options in made} == {cores.available_cores()}
    assert {options.get_session_config_entry("session.intra_op.allow_spinning") for options in made} == {"0"}
