"""Sums over the vocabulary, in float32 as torch computes them.

numpy's own `exp` and `sum` have other last bits on other processors. What `native_search` and a GPU have to give bit
for bit is therefore stated here operation by operation (plugins/search/whole.h is the same in C++, and
plugins/beam_search/weights.cuh on a GPU). Sums are those of whole numbers, so that they have no order.
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
WEIGHT_BITS = 44  # of a weight of 1: sums of the weights of up to 2**20 tokens have 64 bits


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


def weights(values: Floats) -> NDArray[np.uint64]:
    """The exponentials of numbers up to 0 in units of 2**-WEIGHT_BITS, rounded to the nearest and halves to even. That
    of a NaN is 0."""
    one = np.float64(2.0 ** (52 - WEIGHT_BITS))  # what is added to it is rounded to such a unit, in the low bits
    found = exponentials_up_to_one(values).astype(np.float64)
    found += one
    bits = found.view(np.uint64)
    bits -= one.view(np.uint64)
    return bits


def sum_of_exponentials(values: Floats) -> NDArray[np.float64]:
    """Over the last axis of [..., n] numbers up to 0."""
    total = weights(values).sum(axis=-1, dtype=np.uint64)
    return np.asarray(total.astype(np.float64) * 2.0**-WEIGHT_BITS)


SQRT_HALF_BITS = np.int32(0x3F3504F3)  # of float32
LOGARITHM = (
    1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1,
    3.3333331174e-1,
)  # fmt: skip


def float_logarithms(values: Floats, below_one: Floats | None = None) -> Floats:
    """Of positive normal numbers: x = 2**n * (1 + m), and a polynomial for m (Cephes' logf).

    below_one: how far each value is from 1, where that is known more precisely; used where it is below 1/4.
    """
    bits = values.view(np.int32)
    n = (bits - SQRT_HALF_BITS) >> 23
    m = (bits - (n << 23)).view(np.float32) - np.float32(1.0)
    if below_one is not None:
        is_near = below_one < np.float32(0.25)
        n, m = np.where(is_near, np.int32(0), n), np.where(is_near, -below_one, m)
    exponent, square = n.astype(np.float32), m * m
    found = m * np.float32(7.0376836292e-2)
    found += np.float32(-1.1514610310e-1)
    for factor in LOGARITHM:
        found *= m
        found += np.float32(factor)
    found *= m
    found *= square
    found += exponent * np.float32(-2.12194440e-4)
    found -= square * np.float32(0.5)
    found += m
    found += exponent * np.float32(0.693359375)
    return found


def normalised(scores: Floats) -> Floats:
    """Log-softmax over the last axis, as it is stated here. A row whose largest score is not finite becomes
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
