"""The beam-search kernels, run on this CPU, against the numpy definition: scores and tables bit for bit."""

from __future__ import annotations

import ctypes
import functools

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from plugin_helpers import build

from s2s_export import plugin_sources
from s2s_export.errors import BuildError

reference = plugin_sources.module("beam_search.reference")
structures = plugin_sources.module("beam_search.structures")
tolerances = plugin_sources.module("beam_search.tolerances")
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
EARLY = (False, True, "never")
SANITIZE = False  # set by test_sanitized.py in a process of its own

try:
    build.find_compiler("c++", "g++", "clang++")
except BuildError as missing:
    pytest.skip(str(missing), allow_module_level=True)


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build.host_library("beam_search", SANITIZE)))
    loaded.s2s_host_schedule.argtypes = [ctypes.c_uint64]
    return loaded


def fill(structure: type[ctypes.Structure], arrays: dict[str, NDArray], **numbers: int) -> ctypes.Structure:
    given = structure(**numbers)
    for name, kind in structure._fields_:
        if kind is ctypes.c_void_p:
            assert arrays[name].flags.c_contiguous
            setattr(given, name, arrays[name].ctypes.data)
    return given


def top(logits: NDArray, element: str, n_candidates: int, schedule: int = 0) -> dict[str, NDArray]:
    R, V = logits.shape
    lists = library().s2s_log_softmax_top_lists(V)
    arrays = {
        "logits": logits,
        "list_values": np.full((R, lists, n_candidates), np.nan, np.float32),
        "list_ids": np.full((R, lists, n_candidates), -7, np.int32),
        "list_maximum": np.full((R, lists), np.nan, np.float32),
        "list_sum": np.full((R, lists), np.nan, np.float32),
        "log_normalizer": np.zeros(R, np.float32),
        "candidate_log_probs": np.zeros((R, n_candidates), np.float32),
        "candidate_ids": np.zeros((R, n_candidates), np.int64),
    }
    numbers = {"rows": R, "vocabulary": V, "candidates": n_candidates, "lists": lists}
    given = fill(structures.LogSoftmaxTopParameters, arrays, **numbers)
    library().s2s_host_schedule(schedule)
    assert library().s2s_log_softmax_top(list(DTYPES).index(element), ctypes.byref(given), None) == 0
    return arrays


def check_top(logits: NDArray, element: str, n_candidates: int, schedule: int = 0) -> None:
    outputs = top(logits, element, n_candidates, schedule)
    normalizer, ids, log_probs = reference.log_softmax_top(logits, n_candidates)
    np.testing.assert_array_equal(outputs["candidate_ids"], ids)
    np.testing.assert_allclose(outputs["log_normalizer"], normalizer, tolerances.RELATIVE, tolerances.ABSOLUTE)
    np.testing.assert_allclose(outputs["candidate_log_probs"], log_probs, tolerances.RELATIVE, tolerances.ABSOLUTE)


def random_logits(rng: np.random.Generator, rows: int, vocabulary: int, kind: str, element: str) -> NDArray:
    logits = rng.standard_normal((rows, vocabulary)) * rng.choice([0.5, 4.0, 20.0])
    if kind == "ties":
        logits = np.round(logits)
    elif kind == "equal":
        logits[:] = 3.0
    elif kind == "masked":
        logits[rng.random(logits.shape) < 0.7] = -np.inf
        logits[:, rng.integers(vocabulary)] = 1.0
    elif kind == "neighbours":  # the best ones all in one lane of one warp
        logits[:, 5 : 5 + 32 * 40 : 32] += 60
    elif kind == "rising":
        logits = np.sort(logits, axis=1)
    return logits.astype(DTYPES[element])


KINDS = ("plain", "ties", "equal", "masked", "neighbours", "rising")


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_log_softmax_top(element: str, kind: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for i in range(12):
        vocabulary = int(rng.choice([1, 2, 31, 33, 100, 511, 513, 1024, 2500, 5000]))
        n_candidates = int(rng.integers(1, min(vocabulary, 48) + 1))
        logits = random_logits(rng, int(rng.integers(1, 6)), vocabulary, kind, element)
        check_top(logits, element, n_candidates, schedule=i)


@pytest.mark.parametrize("vocabulary", [32128, 58101, 256204, 262144])
def test_real_vocabularies(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    check_top(random_logits(rng, 2, vocabulary, "ties", "fp16"), "fp16", 12)


def test_nan_is_never_chosen_and_shows() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 600)).astype(np.float32)
    logits[1, 17] = np.nan
    outputs = top(logits, "fp32", 9)
    np.testing.assert_array_equal(outputs["candidate_ids"], reference.log_softmax_top(logits, 9)[1])
    assert np.isfinite(outputs["log_normalizer"][0])
    assert np.isnan(outputs["log_normalizer"][1])
    assert np.isnan(outputs["candidate_log_probs"][1]).all()


def update_with_kernels(search: object, arrays: dict[str, NDArray], log_probs: NDArray, ids: NDArray) -> None:
    given = fill(
        structures.BeamUpdateParameters,
        {**arrays, "candidate_log_probs": log_probs, "candidate_ids": ids},
        sources=search.sources,
        beams=search.beams,
        candidates=ids.shape[2],
        n_end=len(search.end_ids),
        prompt=search.prompt,
        limit=search.limit,
        capacity=search.capacity,
        early_stopping=int(search.early_stopping is True),
        bound_at_limit=int(search.bound_at_limit),
    )
    assert library().s2s_beam_update(ctypes.byref(given), None) == 0
    numbers = {"sources": search.sources, "beams": search.beams}
    given = fill(structures.BeamStopParameters, arrays, **numbers, early_stopping=int(search.early_stopping is True))
    assert library().s2s_beam_stop(ctypes.byref(given), None) == 0


def decode_both(rng: np.random.Generator, schedule: int, **fixed: object) -> int:
    """A search of random distributions by the definition and by the kernels; compares every table at every step."""
    options = {
        "beams": int(rng.integers(1, 17)),
        "sources": int(rng.integers(1, 5)),
        "vocabulary": int(rng.choice([6, 12, 40, 150])),
        "n_end": int(rng.choice([0, 1, 1, 2, 3])),
        "limit": int(rng.integers(1, 14)),
        "prompt": int(rng.integers(1, 4)),
        "length_penalty": float(rng.choice([0.0, 0.6, 1.0, 2.0, -0.5])),
        "early_stopping": EARLY[int(rng.integers(3))],
        "kind": str(rng.choice(["plain", "ties", "masked", "eager"])),
        **fixed,
    }
    kind, vocabulary = options.pop("kind"), options.pop("vocabulary")
    end_ids = tuple(int(t) for t in rng.choice(vocabulary, options.pop("n_end"), replace=False))
    capacity = options["prompt"] + options["limit"] - int(rng.integers(0, 2))
    search = reference.Search(end_ids=end_ids, capacity=capacity, **options)
    arrays = {name: array.copy() for name, array in search.arrays.items()}
    n_candidates = min(vocabulary, search.n_chosen)
    if n_candidates * search.beams < search.n_chosen:
        return 0
    library().s2s_host_schedule(schedule)
    for step in range(search.limit):
        logits = rng.standard_normal((search.sources * search.beams, vocabulary)).astype(np.float32) * 2
        if kind == "ties":
            logits = np.round(logits)
        elif kind == "masked":
            logits[rng.random(logits.shape) < 0.8] = -np.inf
            logits[:, 0] = 1.0
        elif kind == "eager" and end_ids:
            logits[:, list(end_ids)] += 5
        _, ids, log_probs = reference.log_softmax_top(logits, n_candidates)
        shape = (search.sources, search.beams, n_candidates)
        ids, log_probs = ids.reshape(shape), log_probs.astype(np.float32).reshape(shape)
        update_with_kernels(search, arrays, np.ascontiguousarray(log_probs), np.ascontiguousarray(ids))
        search.update(log_probs, ids)
        stopped = search.stop()
        for name, expected in search.arrays.items():
            assert arrays[name].tobytes() == expected.tobytes(), f"{name} at step {step} of {search}"
        if stopped:
            break
    return step + 1


@pytest.mark.parametrize("seed", range(8))
def test_whole_searches(seed: int) -> None:
    steps = sum(decode_both(np.random.default_rng((seed, i)), schedule=i) for i in range(40))
    assert steps > 80


@pytest.mark.parametrize("beams", range(1, 17))
def test_every_number_of_beams(beams: int) -> None:
    for i in range(6):
        decode_both(np.random.default_rng((beams, i)), i, beams=beams, kind="ties", n_end=i % 4, vocabulary=40, limit=8)


def test_everything_ends_at_once() -> None:
    """All tokens are end tokens: the first step finishes K hypotheses and stops."""
    search = reference.Search(sources=2, beams=3, end_ids=(0, 1, 2, 3), prompt=1, limit=9, capacity=12)
    arrays = {name: array.copy() for name, array in search.arrays.items()}
    ids = np.tile(np.arange(4), (2, 3, 1))
    log_probs = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32)) * np.ones((2, 3, 1), np.float32)
    with pytest.raises(AssertionError):  # 12 offers for 15 places
        update_with_kernels(search, arrays, log_probs, ids)
    search = reference.Search(sources=2, beams=3, end_ids=(0, 1), prompt=1, limit=9, capacity=12)
    arrays = {name: array.copy() for name, array in search.arrays.items()}
    ids, log_probs = np.ascontiguousarray(ids % 2 + 0 * ids), np.ascontiguousarray(log_probs)
    ids[..., 2:] += 2
    log_probs[..., 2:] = -np.inf
    update_with_kernels(search, arrays, log_probs, ids)
    search.update(log_probs, ids)
    search.stop()
    assert all(arrays[name].tobytes() == search.arrays[name].tobytes() for name in arrays)
    assert (arrays["pool_finished"][:, :2] == 1).all()


def test_ancestors_spell_the_history() -> None:
    """What the table says of a beam is what walking its parents says."""
    rng = np.random.default_rng(2)
    search = reference.Search(sources=1, beams=4, end_ids=(), prompt=2, limit=10, capacity=12)
    for _ in range(9):
        _, ids, log_probs = reference.log_softmax_top(rng.standard_normal((4, 30)).astype(np.float32), 8)
        search.update(log_probs.astype(np.float32)[None], ids[None])
        search.stop()
        last = search.step - 1  # tokens[last] are fed next, at the position that `position` names
        for k in range(4):
            beam = k
            for step in range(last, -1, -1):
                assert search.arrays["ancestors"][0, k, search.prompt + step] == beam
                beam = search.arrays["parents"][step, 0, beam]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"beams": 17}, -3),
        ({"beams": 0}, -3),
        ({"sources": 0}, -4),
        ({"limit": 0}, -4),
        ({"n_end": 9, "beams": 16}, -7),
    ],
)
def test_update_refuses(change: dict[str, int], status: int) -> None:
    numbers = {"sources": 1, "beams": 4, "candidates": 8, "n_end": 1, "prompt": 1, "limit": 5, "capacity": 9, **change}
    given = structures.BeamUpdateParameters(**numbers)
    assert library().s2s_beam_update(ctypes.byref(given), None) == status


@pytest.mark.slow
def test_many_searches() -> None:
    for i in range(2000):
        decode_both(np.random.default_rng((99, i)), schedule=i)
