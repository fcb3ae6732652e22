"""Engines against the portable graphs: cpu-fp32 has their tokens for any options, int8 is near them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_models
from command_line import s2s
from tiny_names import STRUCTURES

import s2s_export
from s2s_export import bundle as bundles
from s2s_export.building.build import build
from s2s_export.engines import engines
from s2s_export.runtime.decoding.state import StepQuery

N_CASES = 6
KERNELS = ("own", "onnxruntime")
# Every model with our own kernels; with ONNX Runtime's, which take over where ours can't run, one of each structure.
SWEPT = [
    pytest.param(name, kernels, marks=model.marks if kernels == "own" or name in STRUCTURES else pytest.mark.slow)
    for model in tiny_models.SWEPT
    for name in model.values
    for kernels in KERNELS
]
# In int8 one of each structure, with both kinds of kernels.
SWEPT_IN_INT8 = [
    pytest.param(name, kernels, marks=() if name in STRUCTURES else pytest.mark.slow)
    for name in tiny_models.CONFIGS
    for kernels in KERNELS
]
# Log-probabilities from sums in another order. The random T5s, which don't scale attention, magnify rounding: PyTorch
# in float32 is up to 5e-5 (t5) and 5e-4 (mt5) from itself in float64, as are both kinds of kernels; the others 6e-6.
TOLERANCE = {"t5": 1e-4, "t5-gated": 1e-4, "mt5": 1e-3}
USUAL_TOLERANCE = 1.2e-5


def near(values, name):
    return pytest.approx(values, rel=4e-6, abs=TOLERANCE.get(name, USUAL_TOLERANCE))


def random_options(rng):
    """Options of all kinds: few and many beams, rules that probe, rules that want the whole distribution, sampling."""
    beams = int(rng.integers(1, 6))
    options = {
        "num_beams": beams,
        "max_new_tokens": int(rng.integers(3, 30)),
        "length_penalty": float(rng.uniform(0, 2)),
    }
    options["num_return_sequences"] = int(rng.integers(1, beams + 1))
    kind = rng.integers(0, 5)
    if kind == 0:
        options["no_repeat_ngram_size"] = 2
    elif kind == 1:
        options |= {"min_new_tokens": 3, "suppress_tokens": [5, 9, 11]}
    elif kind == 2:
        options["repetition_penalty"] = 1.3
    elif kind == 3:
        options |= {"do_sample": True, "seed": int(rng.integers(100)), "temperature": 0.8, "num_return_sequences": 1}
    if kind == 4 or rng.integers(0, 2):
        options["alignments"] = True
    return options


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "kernels"), SWEPT)
def test_fp32_gives_the_tokens_of_the_portable_graphs(built, name, kernels):
    path = built(name, "cpu-fp32", kernels=kernels)
    rng = np.random.default_rng(sum(map(ord, name)))
    portable = s2s_export.load(path, "onnxruntime", "portable", threads=1)
    fast = s2s_export.load(path, "onnxruntime", threads=1)
    assert (portable.backend.target, fast.backend.target) == (None, "cpu-fp32")
    for _ in range(N_CASES):
        lengths = rng.integers(1, 9, size=rng.integers(1, 5))
        sources = [rng.integers(3, 50, size=n).tolist() for n in lengths]
        options = random_options(rng)
        expected, found = portable.generate(sources, **options), fast.generate(sources, **options)
        for a, b in zip(expected, found, strict=True):
            assert [h.token_ids for h in a] == [h.token_ids for h in b], options
            assert [h.score for h in a] == near([h.score for h in b], name)
            if "alignments" in options:
                assert a[0].alignment == near(b[0].alignment, name)


@pytest.mark.parametrize("name", ["marian", "t5", "m2m_100"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_random_parents_and_sources_that_leave(built, name, kernels):
    """40 steps of 5 beams with random parents: the cache is full several times, sources leave in between."""
    path = built(name, "cpu-fp32", kernels=kernels)
    rng = np.random.default_rng(4)
    sources = [[7, 8, 9, 10], [11, 12], [13, 14, 15]]
    states = [
        s2s_export.load(path, "onnxruntime", target, threads=1).backend.begin(sources, 5)
        for target in ("portable", "cpu-fp32")
    ]
    n = len(sources)
    for t in range(40):
        if t == 23:
            for state in states:
                state.keep(np.array([0, 2]))
            n = 2
        tokens = rng.integers(3, 50, (n, 5))
        parents = np.sort(rng.integers(0, 5, (n, 5)), axis=1) if t % 3 else np.tile(np.arange(5), (n, 1))
        query = StepQuery(n_candidates=4, dense=t % 7 == 0)
        expected, found = (state.step(tokens, parents if t else parents * 0, query) for state in states)
        assert (expected.candidate_ids == found.candidate_ids).all()
        assert expected.candidate_log_probs == near(found.candidate_log_probs, name)
        assert expected.log_normalizer == near(found.log_normalizer, name)
        if query.dense:
            assert expected.log_probs == near(found.log_probs, name)
    if kernels == "onnxruntime":
        assert states[1]._table.n_slots < states[0]._table.n_slots  # dead ones were dropped


@pytest.mark.parametrize(("name", "kernels"), SWEPT_IN_INT8)
def test_int8_is_near_fp32(built, name, kernels):
    path = built(name, "cpu-int8", kernels=kernels)
    rng = np.random.default_rng(1)
    for n_beams in (1, 4):  # rows of the narrow step, and of the wide one
        sources = [rng.integers(3, 50, size=5).tolist() for _ in range(3)]
        backends = [s2s_export.load(path, "onnxruntime", t, threads=1).backend for t in ("portable", "cpu-int8")]
        states = [backend.begin(sources, n_beams) for backend in backends]
        errors, spread = [], []
        for t in range(6):
            tokens = rng.integers(3, 50, (3, n_beams))
            parents = np.zeros((3, n_beams), dtype=np.int64)
            query = StepQuery(n_candidates=3, dense=True)
            expected, found = (state.step(tokens, parents, query).log_probs.copy() for state in states)
            errors.append(np.abs(expected - found).mean())
            spread.append(expected.std())
            assert np.isfinite(found).all(), t
        assert np.mean(errors) < 0.15 * np.mean(spread)


@pytest.mark.parametrize("kernels", KERNELS)
def test_int8_records_what_it_loses(built, kernels):
    engine = engines(bundles.read(built("marian", "cpu-int8", kernels=kernels)))["cpu-int8"]
    searches = engine["accuracy"]["searches"]
    assert {(s["num_beams"], s["batch_size"]) for s in searches} == {(1, 1), (1, 8), (4, 1), (4, 8)}
    assert all(0 <= s["equal"] <= s["tokens"] <= 1 or s["equal"] <= 1 for s in searches)
    assert engine["weights"] == "engine" and bool(engine["operators"]) == (kernels == "own")
    if kernels == "onnxruntime":
        assert engine["graphs"]["decoder_step_narrow"]["max_rows"] == 4


def test_fp32_with_the_librarys_kernels_brings_no_weights(built):
    path = built("marian", "cpu-fp32", kernels="onnxruntime")
    engine = engines(bundles.read(path))["cpu-fp32"]
    assert engine["weights"] == "bundle"
    assert not list((path / "engines" / "cpu-fp32").glob("*.bin"))
    assert [s["equal"] for s in engine["accuracy"]["searches"]] == [1.0] * 4


def test_weights_in_half_precision_are_brought_in_fp32(tmp_path):
    checkpoint = tiny_models.save("t5", tmp_path / "checkpoint")
    path = tmp_path / "bundle"
    s2s_export.export(checkpoint, path, precision="fp16")
    report = build(path, "cpu-fp32")
    assert report.engine["weights"] == "engine"
    sources = [[5, 6, 7, 8], [9, 10]]
    tokens = [
        [h[0].token_ids for h in s2s_export.load(path, "onnxruntime", t).generate(sources, num_beams=3)]
        for t in ("portable", "cpu-fp32")
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(("kernels", "words"), [("own", "our own kernels"), ("onnxruntime", "ONNX Runtime's")])
def test_inspect_says_whose_kernels_an_engine_has(built, kernels, words):
    assert words in s2s("inspect", built("marian", "cpu-fp32", kernels=kernels)).stdout


def test_a_bundle_with_an_engine_moves(built, tmp_path):
    import shutil

    path = shutil.copytree(built("bart", "cpu-fp32"), tmp_path / "elsewhere")
    assert s2s_export.load(path, "onnxruntime").backend.target == "cpu-fp32"
    assert json.loads((path / "engines/cpu-fp32/engine.json").read_text())["made_from"]
