"""Random draws that depend only on a seed and on what they are for.

Philox4x64-10 (Salmon et al., SC 2011; `numpy.random.Philox`) computes numbers of 64 bits from a key and a counter. The
key is (seed, source), and the counter starts at (0, 0, row, length): `source` is the source's number in the caller's
work, `row` the sample, `length` the number of tokens so far. So the draws of a source don't depend on the other sources
in its batch. What is computed from them is stated operation by operation, in whole numbers and float32, so that every
processor and a GPU draw the same tokens from the same scores.

transformers uses torch's global generator: its distributions are the same, its draws are not.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .numerics import float_logarithms, weights
from .state import Floats, Ints

_MASK = (1 << 64) - 1
# A token whose score is so far below the best has a weight of 0 (numerics.weights).
_FAR = np.float32(32.0)


class Draws:
    """seed: None for a random one. sources: the number of each source, on which its draws depend."""

    def __init__(self, seed: int | None, sources: Sequence[int]) -> None:
        self._seed = secrets.randbits(64) if seed is None else seed & _MASK
        self._sources = [source & _MASK for source in sources]

    def numbers(self, source: int, row: int, length: int, n: int) -> NDArray[np.uint64]:
        """The first n numbers of a stream."""
        key = np.array([self._seed, self._sources[source]], dtype=np.uint64)
        found: NDArray[np.uint64] = np.random.Philox(
            key=key, counter=np.array([0, 0, row, length], dtype=np.uint64)
        ).random_raw(n)
        return found

    def one_each(self, scores: Floats, present: Ints, length: int) -> Ints:
        """A token [B, K] for every row of scores [B, K, V], drawn with the probabilities softmax(scores).

        The stream's first number, as a fraction of 2**64, is a point in the sum of all weights; the token is the first
        that takes the running sum beyond it. The last token where none has a weight.
        """
        n_sources, n_rows, vocabulary_size = scores.shape
        tokens = np.full((n_sources, n_rows), vocabulary_size - 1, dtype=np.int64)
        for b, source in enumerate(present.tolist()):
            for k in range(n_rows):
                row = scores[b, k]
                best = row.max()
                if not np.isfinite(best):
                    continue
                possible = np.flatnonzero(row > best - _FAR)
                sums = np.cumsum(weights(row[possible] - best), dtype=np.uint64)
                point = int(self.numbers(source, k, length, 1)[0]) * int(sums[-1]) >> 64
                tokens[b, k] = possible[np.searchsorted(sums, np.uint64(point), side="right")]
        return tokens

    def race(self, scores: Floats, present: Ints, length: int) -> Floats:
        """[B, W] of scores [B, W]: the positions of the n largest, in order, are n different positions drawn one after
        another with probabilities softmax(scores). Of impossible positions minus infinity.

        The method is that of torch.multinomial: log p - log E with exponential numbers E (Efraimidis and Spirakis
        2006). The E of a position is made of the stream's number at that position.
        """
        found = np.full(scores.shape, -np.inf, np.float32)
        for row, race, source in zip(scores, found, present.tolist(), strict=True):
            possible = np.flatnonzero(row > -np.inf)
            if len(possible):
                bits = self.numbers(source, 0, length, int(possible[-1]) + 1)[possible]
                race[possible] = row[possible] - float_logarithms(exponential_numbers(bits))
        return found


def exponential_numbers(bits: NDArray[np.uint64]) -> Floats:
    """-log u, u being (b + 1/2) / 2**53 for the upper 53 of each number's bits."""
    odd = (bits >> np.uint64(11)).astype(np.int64) * 2 + 1  # u * 2**54
    unit = np.float32(2.0**-54)
    u, below_one = odd.astype(np.float32) * unit, ((1 << 54) - odd).astype(np.float32) * unit
    return -float_logarithms(u, below_one)
