"""An output projection whose normaliser is left out: the best tokens are those of the whole product, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from test_own_kernels import library as library  # a fixture
from test_own_kernels import normal, run

from s2s_export.building.cpu.own import packing
from s2s_export.runtime.native_graphs.library import screened

TOKENS, WIDTH = 6013, 70
LEFT_OUT = np.float32(np.inf)


def weights(kind, rng):
    """Weights of which few tokens are likely, as a trained model's; of which many nearly are; and of all sizes."""
    weight = normal(rng, TOKENS, WIDTH)
    if kind == "even":
        return weight
    if kind == "of all sizes":
        return weight * np.exp(3 * normal(rng, TOKENS, 1))
    return weight * np.float32(0.3) + (np.arange(TOKENS) % 97 == 5)[:, None] * normal(rng, 1, WIDTH)


def head(library, x, weight, bias, n_candidates, probes, leaves, storage="fp32"):
    packed = packing.to_floats(weight, storage, narrows=storage != "fp32")
    asked = [np.array([n_candidates]), probes, np.array(False), np.array(leaves)]
    padded = None if bias is None else packing.filled(bias, packing.LANES)
    inputs = [x, *packed.arrays.values(), padded, *asked]
    return run(library, packed.operator("Head"), inputs, 5, [1, 2], n_out=TOKENS)[:4]


def counts(library):
    return np.array(screened(library))


def same(x, weight, bias, n, library, storage="fp32"):
    """Compares what is left with the whole. Returns how many rows' normalisers were left out."""
    rows = len(x)
    probes = np.array([[[3, 3 + r, TOKENS - 1]] for r in range(rows)])
    best, ids, normalizer, probed = head(library, x, weight, bias, n, probes, False, storage)
    logits, left_ids, rest, left_probed = head(library, x, weight, bias, n, probes, True, storage)
    np.testing.assert_array_equal(left_ids, ids)
    left = rest == LEFT_OUT
    rest = np.where(left, -best[..., 0], rest)  # the best token's logarithm is 0 less the rest
    top = logits[..., :1]
    np.testing.assert_array_equal((logits - top) - rest[..., None], best)
    np.testing.assert_array_equal((left_probed - top) - rest[..., None], probed)
    np.testing.assert_array_equal(top[..., 0] + rest, normalizer)
    return int(left.sum())


@pytest.mark.parametrize("kind", ["trained", "even", "of all sizes"])
def test_the_best_are_those_of_the_whole_product(library, kind):
    rng = np.random.default_rng(len(kind))
    weight, before = weights(kind, rng), counts(library)
    n_left = 0
    for rows, n, bias in [(1, 1, None), (2, 3, normal(rng, TOKENS)), (4, 32, normal(rng, TOKENS) * 10), (3, 2, None)]:
        x = normal(rng, rows, WIDTH)
        x[:, 7] *= 30  # as some numbers of a state are larger than all others
        n_left += same(x, weight, bias, n, library)
    assert n_left >= 6
    found = counts(library) - before
    assert found[0] == n_left and n_left <= found[1] < n_left * TOKENS / packing.LANES / 8


def test_weights_of_16_bits(library):
    rng = np.random.default_rng(3)
    for storage in ("fp16", "bf16"):
        assert same(normal(rng, 2, WIDTH), weights("trained", rng), None, 4, library, storage) == 2


def test_what_screening_is_no_use_for_is_computed_whole(library):
    rng = np.random.default_rng(5)
    weight = weights("even", rng)
    alike = np.repeat(normal(rng, 1, WIDTH), TOKENS, axis=0)
    before = counts(library)
    assert same(normal(rng, 2, WIDTH), alike, None, 3, library) == 0  # all tokens are equally good
    assert counts(library)[2] - before[2] == 2
    assert same(normal(rng, 9, WIDTH), weight, None, 3, library) == 0  # too many rows
    assert same(normal(rng, 1, WIDTH), weight, None, 33, library) == 0  # too many candidates
    assert same(np.zeros((1, WIDTH), np.float32), weight, None, 1, library) == 0


@pytest.mark.filterwarnings("ignore:invalid value")
def test_numbers_that_are_none_or_too_large(library):
    rng = np.random.default_rng(6)
    weight = weights("trained", rng)
    for value in (np.nan, np.inf, -np.inf, 3e38):
        x, changed = normal(rng, 2, WIDTH), weight.copy()
        x[1, 3] = value
        assert same(x, weight, None, 2, library) == 0
        changed[4001, 3] = value
        same(normal(rng, 2, WIDTH), changed, None, 2, library)


def test_tokens_that_tie_come_in_their_order(library):
    rng = np.random.default_rng(7)
    weight = weights("trained", rng)
    x = normal(rng, 1, WIDTH)
    weight[[700, 705, 3000, 5999]] = 4 * x
    assert same(x, weight, None, 3, library) == 1
    ids = head(library, x, weight, None, 3, np.zeros((1, 1, 1), np.int64), True)[1]
    assert ids.ravel().tolist() == [700, 705, 3000]


@pytest.mark.slow
def test_thousands_of_products(library):
    rng = np.random.default_rng(11)
    for _ in range(300):
        weight = weights(("trained", "even", "of all sizes")[rng.integers(3)], rng)
        weight *= np.float32(10.0 ** rng.uniform(-6, 6))
        x = normal(rng, int(rng.integers(1, 5)), WIDTH) * np.float32(10.0 ** rng.uniform(-6, 6))
        x[:, rng.integers(WIDTH)] *= np.float32(10.0 ** rng.uniform(0, 3))
        bias = normal(rng, TOKENS) * np.float32(10.0 ** rng.uniform(-3, 3)) if rng.integers(2) else None
        same(x, weight, bias, int(rng.integers(1, 33)), library, ("fp32", "fp16", "bf16")[rng.integers(3)])
