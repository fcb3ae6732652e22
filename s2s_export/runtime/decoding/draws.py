"""Random draws that depend on nothing but a seed and what they are for.

Philox4x64-10 (Salmon et al., SC 2011; `numpy.random.Philox`) makes numbers from a key and a counter. The key is
(seed, source), the counter starts at (0, 0, row, length): `source` is the source's number in the caller's work, `row`
the sample, `length` the tokens so far. So a source draws the same whatever else is in its batch and however the batch
shrinks, and a device can draw the same numbers. A number becomes a uniform one by its upper 53 bits:
(bits + 0.5) / 2**53.

transformers draws from torch's global generator; the distributions are the same, the draws are not.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .numerics import softmax
from .state import Floats, Ints

_MASK = (1 << 64) - 1


class Draws:
    """seed: None for a new one. sources: the number of each source, by which its draws are made."""

    def __init__(self, seed: int | None, sources: Sequence[int]) -> None:
        self._seed = secrets.randbits(64) if seed is None else seed & _MASK
        self._sources = [source & _MASK for source in sources]

    def uniform(self, source: int, row: int, length: int, n: int) -> NDArray[np.float64]:
        """[n] between 0 and 1, neither included."""
        key = np.array([self._seed, self._sources[source]], dtype=np.uint64)
        bits = np.random.Philox(key=key, counter=np.array([0, 0, row, length], dtype=np.uint64)).random_raw(n)
        return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def one_each(self, scores: Floats, present: Ints, length: int) -> Ints:
        """A token [B, K] for every row of scores [B, K, V], with the probabilities softmax(scores)."""
        n_sources, n_rows, vocabulary_size = scores.shape
        sums = np.cumsum(softmax(scores), axis=-1, dtype=np.float64)
        tokens = np.empty((n_sources, n_rows), dtype=np.int64)
        for b, source in enumerate(present.tolist()):
            for k in range(n_rows):
                point = self.uniform(source, k, length, 1)[0] * sums[b, k, -1]
                tokens[b, k] = min(int(np.searchsorted(sums[b, k], point, side="right")), vocabulary_size - 1)
        return tokens

    def without_replacement(self, scores: Floats, n: int, present: Ints, length: int) -> Ints:
        """n different positions [B, n] of scores [B, W], drawn one after the other with probabilities softmax(scores).

        By the exponential race that torch.multinomial runs too: with E exponential, the largest log p - log E are such
        a draw, in order (Efraimidis and Spirakis 2006). Where fewer than n are possible, impossible ones follow.
        """
        out = np.empty((len(scores), n), dtype=np.int64)
        for row, found, source in zip(scores, out, present.tolist(), strict=True):
            possible = np.flatnonzero(row > -np.inf)
            race = np.full(len(row), -np.inf)
            race[possible] = row[possible] - np.log(-np.log(self.uniform(source, 0, length, len(possible))))
            found[:] = np.argsort(-race, kind="stable")[:n]
        return out
