"""Random draws that depend only on a seed and on what they are for.

Philox4x64-10 (Salmon et al., SC 2011; `numpy.random.Philox`) computes numbers from a key and a counter. The key is
(seed, source), and the counter starts at (0, 0, row, length): `source` is the source's number in the caller's work,
`row` the sample, `length` the number of tokens so far. So the draws of a source don't depend on the other sources in
its batch, and the search on a GPU can draw the same numbers. The upper 53 bits of a number give a uniform one: (bits +
0.5) / 2**53.

transformers uses torch's global generator: its distributions are the same, its draws are not.
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
    """seed: None for a random one. sources: the number of each source, on which its draws depend."""

    def __init__(self, seed: int | None, sources: Sequence[int]) -> None:
        self._seed = secrets.randbits(64) if seed is None else seed & _MASK
        self._sources = [source & _MASK for source in sources]

    def uniform(self, source: int, row: int, length: int, n: int) -> NDArray[np.float64]:
        """n uniform numbers between 0 and 1, excluding both."""
        key = np.array([self._seed, self._sources[source]], dtype=np.uint64)
        bits = np.random.Philox(key=key, counter=np.array([0, 0, row, length], dtype=np.uint64)).random_raw(n)
        return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def one_each(self, scores: Floats, present: Ints, length: int) -> Ints:
        """A token [B, K] for every row of scores [B, K, V], drawn with the probabilities softmax(scores)."""
        n_sources, n_rows, vocabulary_size = scores.shape
        sums = np.cumsum(softmax(scores), axis=-1, dtype=np.float64)
        tokens = np.empty((n_sources, n_rows), dtype=np.int64)
        for b, source in enumerate(present.tolist()):
            for k in range(n_rows):
                point = self.uniform(source, k, length, 1)[0] * sums[b, k, -1]
                tokens[b, k] = min(int(np.searchsorted(sums[b, k], point, side="right")), vocabulary_size - 1)
        return tokens

    def without_replacement(self, scores: Floats, n: int, present: Ints, length: int) -> Ints:
        """n different positions [B, n] in scores [B, W], drawn one after another with probabilities softmax(scores).

        The method is that of torch.multinomial: with exponential numbers E, the positions of the largest log p - log E,
        in order, are such a draw (Efraimidis and Spirakis 2006). If fewer than n positions are possible, impossible
        ones follow.
        """
        out = np.empty((len(scores), n), dtype=np.int64)
        for row, found, source in zip(scores, out, present.tolist(), strict=True):
            possible = np.flatnonzero(row > -np.inf)
            race = np.full(len(row), -np.inf)
            race[possible] = row[possible] - np.log(-np.log(self.uniform(source, 0, length, len(possible))))
            found[:] = np.argsort(-race, kind="stable")[:n]
        return out
