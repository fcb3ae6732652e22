"""The executor on a device of host memory: decoding by engines equals decoding by the portable graphs."""

from __future__ import annotations

import gc
import json
import threading

import numpy as np
import pytest
from command_line import s2s
from fake_tensorrt import FakeDevice, build, fake_library
from small import recipe
from tiny_names import EACH_FAMILY, RECURRENT

import s2s_export
from s2s_export import bundle
from s2s_export.cli._common import tell_choice
from s2s_export.engines import engines
from s2s_export.errors import BackendError, BackendUnavailable, InvalidOption, UnknownOption
from s2s_export.exporting.verify import verify
from s2s_export.measuring import gpu_memory
from s2s_export.runtime.backends._tensorrt import candidates
from s2s_export.runtime.backends._tensorrt.backend import TensorRTBackend
from s2s_export.runtime.cuda import driver as memory
from s2s_export.runtime.decoding.state import StepQuery
from s2s_export.runtime.session import Session

SOURCES = [
    [5, 9, 3],
    [7, 8, 9, 10, 11, 12, 4, 6, 3],
    [4, 4, 5, 6],
    [30],
    [9] * 12,
    [3, 5, 7, 9, 11, 13, 15],
    [6, 3],
    [8] * 16,
]
SEARCHES = {
    "greedy": {"num_beams": 1},
    "beam": {"num_beams": 4, "num_return_sequences": 2},
    "beams that do not divide the slots": {"num_beams": 7},
    "rules": {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
}
PRECISE = 1e-5  # of a score: fp32 on the same machine, sums in another order


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def opened(copied, tmp_path):
    """opened(model, ...) -> session on the fake device, its device, the bundle's path."""

    def make(name, device=None, search="host", **changes):
        path = copied(name)
        changes = {"options": {"attention": True}, **changes}
        folder = build(bundle.read(path), recipe(changes.pop("precision", "fp32"), **changes), tmp_path)
        device = device or FakeDevice()
        backend = TensorRTBackend("tensorrt-rtx", bundle.read(path), folder, fake_library(), device)
        return Session(bundle.read(path), backend, search=search), device, path

    return make


@pytest.mark.parametrize("name", [*EACH_FAMILY, *RECURRENT])
def test_tokens_equal_the_portable_graphs(opened, name):
    session, _, path = opened(name)
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    for search in SEARCHES.values():
        found = session.generate(SOURCES, max_new_tokens=20, **search)
        expected = reference.generate(SOURCES, max_new_tokens=20, **search)
        assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]
        scores = [(h.score, e.score) for f, e in zip(found, expected, strict=True) for h, e in zip(f, e, strict=True)]
        assert all(abs(a - b) < PRECISE for a, b in scores)


def test_alignments_equal_too(opened):
    session, _, path = opened("marian")
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    found = session.generate(SOURCES, num_beams=3, max_new_tokens=8, alignments=True)
    expected = reference.generate(SOURCES, num_beams=3, max_new_tokens=8, alignments=True)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f[0].alignment, e[0].alignment, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_run(opened, precision):
    session, _, _ = opened("t5", precision=precision)
    for of_source in session.generate(SOURCES, num_beams=4, max_new_tokens=12):
        assert np.isfinite(of_source[0].score)


@pytest.mark.parametrize("name", ["marian", "attention"])
def test_sources_that_leave_take_nothing_with_them(opened, name):
    """Steps of five sources, of which some leave, against steps of those alone."""
    session, device, _ = opened(name, ranges={**recipe().ranges, "B": recipe().ranges["K"]})
    rng = np.random.default_rng(0)
    whole = session.backend.begin(SOURCES[:5], 3)
    alone = session.backend.begin([SOURCES[1], SOURCES[4]], 3)
    staying = np.array([1, 4])
    query = StepQuery(n_candidates=4, probe_ids=rng.integers(0, 30, (5, 3, 2)), dense=True)
    fewer = StepQuery(n_candidates=4, probe_ids=query.probe_ids[staying], dense=True)
    for t in range(8):
        tokens, parents = rng.integers(3, 30, (5, 3)), rng.integers(0, 3 if t else 1, (5, 3))
        if t == 4:
            whole.keep(staying)
        if t >= 4:
            found = whole.step(tokens[staying], parents[staying], fewer)
        else:
            found = whole.step(tokens, parents, query)
        expected = alone.step(tokens[staying], parents[staying], fewer)
        rows = slice(None) if t >= 4 else staying
        np.testing.assert_allclose(found.log_probs[rows], expected.log_probs, atol=1e-5)
        np.testing.assert_array_equal(found.candidate_ids[rows], expected.candidate_ids)
        np.testing.assert_allclose(found.probe_log_probs[rows], expected.probe_log_probs, atol=1e-5)
    assert device.copied["moved"] > 0


def test_more_sources_than_the_engine_takes_are_parted(opened):
    session, _, _ = opened("t5")
    state = session.backend.begin(SOURCES, 2)
    assert state.n_sources == 8  # the engine was built for 3
    tokens, parents = np.full((8, 2), 3), np.zeros((8, 2), np.int64)
    before = state.step(tokens, parents, StepQuery(2, attention=True))
    assert before.attention.shape[:2] == (8, 2)
    state.keep(np.array([0, 2, 3, 7]))
    after = state.step(tokens[:4], parents[:4], StepQuery(2))
    assert after.candidate_ids.shape == (4, 2, 2)


def test_a_step_copies_only_what_the_search_needs(opened):
    """Tokens and position down, logits up; the ancestor table only where beams changed places, and only its past."""
    session, device, path = opened("t5")
    state = session.backend.begin(SOURCES[:2], 4)
    vocabulary = bundle.read(path).vocabulary_size
    tokens, same = np.full((2, 4), 3), np.tile(np.arange(4), (2, 1))
    for t in range(6):
        device.copied.update(to_device=0, to_host=0, moved=0)
        parents = same[:, ::-1].copy() if t in (3, 5) else same
        state.step(tokens, parents, StepQuery(4))
        table = 2 * 4 * t * 8 if t in (3, 5) else 0
        assert device.copied == {"to_device": 2 * 4 * 8 + 8 + table, "to_host": 2 * 4 * vocabulary * 4, "moved": 0}


def test_buffers_keep_their_addresses_from_batch_to_batch(opened):
    session, device, _ = opened("marian")
    session.generate(SOURCES[1:2], num_beams=4, max_new_tokens=6)
    gc.collect()
    n = device.allocations
    for source in SOURCES[:3]:  # all in one bucket
        session.generate([source], num_beams=4, max_new_tokens=6)
        gc.collect()
    assert device.allocations <= n + 1


def test_threads_have_lanes_of_their_own(opened):
    session, _, _ = opened("t5")
    expected = [session.generate([s], num_beams=3, max_new_tokens=10)[0][0].token_ids for s in SOURCES]
    found = {}

    def work(i):
        found[i] = session.generate([SOURCES[i]], num_beams=3, max_new_tokens=10)[0][0].token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(SOURCES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(SOURCES))] == expected


def test_finished_kernels_are_kept_for_the_next_process(opened, tmp_path):
    kept = tmp_path / "cache" / "s2s_export" / "kernels"
    session, _, path = opened("t5")
    folder = path / "engines" / "small-fp32"
    del session
    gc.collect()
    files = sorted(kept.iterdir())
    assert [file.name for file in files] == [f"0123456789abcdef0123-{n}-8.9" for n in sorted(bundle.GRAPHS)]
    assert files[0].read_bytes() == b"nothing yet, finished"
    TensorRTBackend("x", bundle.read(path), folder, fake_library(), FakeDevice())
    gc.collect()
    assert files[0].read_bytes() == b"nothing yet, finished, finished"


# Where the search runs


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_models_are_searched_by_the_host_which_says_so(opened, name, capsys):
    session, _, path = opened(name, search="auto")
    assert session.searcher.where == "host"
    tell_choice(session, "auto", quiet=False)
    assert "search: on the host; this model's decoder has states and no caches" in capsys.readouterr().err
    (plan,) = gpu_memory.of_bundle(session.bundle, engines(session.bundle)).values()
    assert plan["search"] == "host" and "states and no caches" in plan["why"]
    assert plan["shapes"][0]["total_bytes"] > 0 and "tables" not in plan["shapes"][0]
    assert "search on the host (this model's decoder has states" in s2s("inspect", path).stdout


@pytest.mark.skipif(memory.unavailable() is None, reason="this machine has a GPU")
def test_a_search_on_the_device_that_cannot_begin(opened):
    with pytest.raises(BackendUnavailable, match="can't begin: no CUDA driver .* search='host'"):
        opened("t5", search="auto")


def test_searches_that_there_are_not(bundled, exported):
    with pytest.raises(UnknownOption, match="unknown search 'devise'; did you mean 'device'"):
        s2s_export.load(bundled("t5"), search="devise")
    with pytest.raises(InvalidOption, match="'device-replay', but the backend onnxruntime runs .* on the host"):
        s2s_export.load(bundled("t5"), backend="onnxruntime", search="device-replay")
    out = s2s("translate", bundled("t5"), "--backend", "onnxruntime", "--search", "device", "a", status=2)
    assert "expected 'auto' or 'host'" in out.stderr
    with pytest.raises(InvalidOption, match="search is 'device'"):
        verify(bundled("t5"), exported("t5")[0], backend="onnxruntime", search="device")


# What a batch can ask for that the engine was not built for


def test_too_many_beams(opened):
    session, _, _ = opened("t5")
    with pytest.raises(
        InvalidOption,
        match=r"9 beams wanted, .* at most 8; build it again with --max-beams 9",
    ):
        session.backend.begin(SOURCES[:1], 9)


def test_a_source_that_is_too_long(opened):
    session, _, _ = opened("t5")
    with pytest.raises(
        BackendError,
        match=r"has 17 tokens, .* at most 16; build it again with --max-source-length 17",
    ):
        session.generate([[5] * 17])


def test_more_tokens_than_the_caches_hold(opened):
    session, _, _ = opened("t5")
    with pytest.raises(BackendError, match=r"no position 24: it was built for 24 tokens; raise ranges\.T"):
        session.generate(SOURCES[:1], min_new_tokens=40, max_new_tokens=50)


def test_alignments_of_an_engine_without(opened):
    session, _, _ = opened("t5", options={})
    with pytest.raises(BackendError, match="set attention = true"):
        session.generate(SOURCES[:1], max_new_tokens=4, alignments=True)


def test_too_little_memory_on_the_device(opened):
    session, _, _ = opened("t5", device=FakeDevice(limit=50_000))
    with pytest.raises(BackendError, match="has no room for"):
        session.generate(SOURCES[:2], num_beams=4)


# Candidates on the host


def test_candidates_are_what_the_definition_says():
    rng = np.random.default_rng(1)
    logits = np.round(rng.normal(size=(2, 3, 40)), 1).astype(np.float32)  # with ties
    probes = rng.integers(0, 40, (2, 3, 5))
    found = candidates.look(logits, StepQuery(7, probes, dense=True))
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.log_probs, exact, atol=1e-5)
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :7]
    np.testing.assert_array_equal(found.candidate_ids, order)
    np.testing.assert_allclose(found.candidate_log_probs, np.take_along_axis(exact, order, -1), atol=1e-5)
    np.testing.assert_allclose(found.probe_log_probs, np.take_along_axis(exact, probes, -1), atol=1e-5)
    np.testing.assert_allclose(found.log_normalizer, np.log(np.exp(logits).sum(-1)), atol=1e-5)
    for count in (1, 40):
        np.testing.assert_array_equal(
            candidates.best(logits, count), np.argsort(-logits, axis=-1, kind="stable")[..., :count]
        )


def test_engine_json_is_plain_data(opened):
    _, _, path = opened("t5")
    record = json.loads((path / "engines" / "small-fp32" / "engine.json").read_text())
    assert record["slots"] % record["ranges"]["K"]["max"] == 0
