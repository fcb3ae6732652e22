"""Sums over the vocabulary, in float32 as torch computes them.

numpy's own `exp` and `sum` have other last bits on other processors. What `native_search` has to give bit for bit is
therefore stated here operation by operation (plugins/search/whole.h is the same in C++).
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .state import Floats, Ints

Scalar = TypeVar("Scalar", bound=np.generic)


def along(values: NDArray[Scalar], at: Ints) -> NDArray[Scalar]:
    """values [B, N, ...] at positions [B, n]: [B, n, ...]. Like np.take_along_axis, but three times as fast."""
    return values[np.arange(len(at))[:, None], at]


# Above this, `exponentials` are infinite: Python's own raises an error from 709.8 on.
MOST_EXPONENT = 700.0


def exponentials(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The C library's, as `native_search` has them: the last bit of numpy's own depends on the processor."""
    found = [math.exp(x) if not x > MOST_EXPONENT else math.inf for x in values.ravel().tolist()]
    return np.asarray(found, dtype=np.float64).reshape(values.shape)


def logarithms(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of positive numbers; see `exponentials`."""
    return np.asarray([math.log(x) for x in values.ravel().tolist()], dtype=np.float64).reshape(values.shape)


LEAST_EXPONENT = np.float32(-87.0)  # e to the power of less counts as 0; it keeps results in float32's normal range
LANES = 16


def exponentials_up_to_one(values: Floats) -> Floats:
    """Of numbers up to 0: x = n * log 2 + r, and a polynomial for r (Cephes' expf), within 2e-7 of the exact value."""
    shift = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, which is then in the low bits
    rest = np.fmax(values, LEAST_EXPONENT)
    rounded = rest * np.float32(1.44269504088896341)
    rounded += shift
    n = rounded - shift
    rest -= n * np.float32(0.693359375)
    rest -= n * np.float32(-2.12194440e-4)
    found = rest * np.float32(1.9875691500e-4)
    found += np.float32(1.3981999507e-3)
    for factor in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        found *= rest
        found += np.float32(factor)
    found *= rest
    found *= rest
    found += rest
    found += np.float32(1.0)
    bits = found.view(np.uint32)
    bits += rounded.view(np.uint32) << np.uint32(23)  # times 2**n, by adding n to the exponent
    bits *= values > LEAST_EXPONENT
    return found


def sum_of_exponentials(values: Floats) -> NDArray[np.float64]:
    """Over the last axis of [..., n] numbers up to 0, in float64: lane j sums numbers j, j + LANES, ... one after
    another, and then the lanes are summed one after another.
    """
    n = values.shape[-1]
    each = np.zeros((*values.shape[:-1], -(-n // LANES) * LANES))
    each[..., :n] = exponentials_up_to_one(values)
    lanes = each.reshape(*values.shape[:-1], -(-n // LANES), LANES)
    # Along an outer axis numpy adds row to row.
    total: NDArray[np.float64] = np.add.accumulate(np.add.reduce(lanes, axis=-2), axis=-1)[..., -1]
    return total


def normalised(scores: Floats) -> Floats:
    """Log-softmax over the last axis, in the order that is stated here. A row whose largest score is not finite becomes
    NaN."""
    best = scores.max(axis=-1)
    with np.errstate(invalid="ignore"):
        shifted: Floats = scores - best[..., None]
        total = np.where(np.isfinite(best), sum_of_exponentials(shifted), np.nan)
        shifted -= logarithms(total)[..., None].astype(np.float32)
    return shifted


def softmax(scores: Floats) -> Floats:
    """Over the last axis. A row without a finite score becomes NaN, as in torch."""
    with np.errstate(invalid="ignore"):
        weights: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def log_softmax(scores: Floats) -> Floats:
    """Over the last axis. A row without a finite score becomes NaN, as in torch."""
    with np.errstate(invalid="ignore"):
        shifted: Floats = scores - scores.max(axis=-1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def cumulative(values: Floats) -> Floats:
    """Running sums over the last axis, added up in float64 and rounded to float32, as torch does on a CPU."""
    return np.cumsum(values, axis=-1, dtype=np.float64).astype(np.float32)


def keep_best(scores: Floats, remove: NDArray[np.bool_], n: int) -> Floats:
    """Minus infinity where `remove` is true, except for tokens whose score is at least that of the row's n-th best."""
    n = min(n, scores.shape[-1])
    threshold = -np.partition(-scores, n - 1, axis=-1)[..., n - 1 : n]
    return np.where(remove & (scores < threshold), np.float32(-np.inf), scores)
