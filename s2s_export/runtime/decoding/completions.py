"""Finds sequences of tokens of which all but the last have just been generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .rule import NO_TOKEN, View, shared_ids
from .state import Ints


class Completions:
    """Finds, for each of W sequences, its last token if a row ends with the tokens before it, and NO_TOKEN otherwise.

    Sequences of the same length are compared together. permutation [W]: the sequence of each column of `find`.
    """

    def __init__(self, words: Sequence[tuple[int, ...]]) -> None:
        lengths = sorted({len(word) for word in words})
        groups = [[i for i, word in enumerate(words) if len(word) == length] for length in lengths]
        self.permutation = [i for group in groups for i in group]
        self.reads_history = bool(lengths) and lengths[-1] > 1
        self._groups = [
            (
                np.asarray([words[i][:-1] for i in group], dtype=np.int64),  # [g, length - 1]
                np.asarray([words[i][-1] for i in group], dtype=np.int64),  # [g]
            )
            for group in groups
        ]
        self.constant = None if self.reads_history else shared_ids([word[0] for word in words])

    def find(self, view: View) -> Ints:
        """The tokens [B, K, W], or [1, 1, W] if every sequence has one token."""
        if self.constant is not None:
            return self.constant
        history = view.history()
        n_sources, n_beams, length = history.shape
        columns = []
        for beginnings, last in self._groups:
            n_before = beginnings.shape[1]
            if n_before > length:
                matches = np.zeros((n_sources, n_beams, len(last)), dtype=bool)
            else:
                tail = history[:, :, None, length - n_before :]  # [B, K, 1, n_before]
                matches = (tail == beginnings).all(axis=-1)
            columns.append(np.where(matches, last, NO_TOKEN))
        return np.concatenate(columns, axis=-1)
