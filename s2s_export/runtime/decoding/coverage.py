"""How much of the source each beam has attended to, and the coverage penalty made of it (arXiv 1609.08144, eq. 14).

    penalty = sum over the source positions of log(min(the attention to it so far, 1)),   at most 0

The attention is the mean over the heads of the last decoder layer, as alignments have it. A finished output's score is
its length-normalised score plus `coverage_penalty` times this; running beams are compared without it, as in GNMT.
Letters: B sources, K rows, S source length, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .numerics import along
from .state import Floats, Ints

LEAST = np.float32(1e-30)  # what attention that a float32 can't hold counts as


class Coverage:
    """attention [B, K, S]: the sums so far."""

    def __init__(self, n_rows: int, lengths: Sequence[int]) -> None:
        """lengths: of the sources; the positions after a source's end don't count."""
        self._is_source = np.arange(max(lengths, default=0)) < np.asarray(lengths)[:, None]  # [B, S]
        self._attention: Floats = np.zeros((len(lengths), n_rows, self._is_source.shape[1]), np.float32)

    def add(self, attention: Floats) -> None:
        """attention [B, K, S]: of the position that is about to be chosen."""
        self._attention = self._attention + attention[:, :, : self._is_source.shape[1]]

    def follow(self, parents: Ints) -> None:
        self._attention = along(self._attention, parents)

    def keep(self, sources: Ints) -> None:
        self._attention, self._is_source = self._attention[sources], self._is_source[sources]

    def penalty(self, parents: Ints) -> Floats:
        """[B, C] for outputs that end with a token after the rows `parents` [B, C]."""
        logs = np.log(np.clip(self._attention, LEAST, np.float32(1.0)))
        of_rows: Floats = np.where(self._is_source[:, None], logs, np.float32(0.0)).sum(axis=-1, dtype=np.float32)
        return along(of_rows, parents)
