"""`no_repeat_ngram_size`: no n tokens in a row occur twice."""

from __future__ import annotations

import numpy as np

from ..options import GenerationOptions
from ..rule import Edit, SparseRule, View, compact

ORDER = 40


class NoRepeatNgram(SparseRule):
    """`NoRepeatNGramLogitsProcessor`: bans the token that followed an earlier occurrence of the last n-1 tokens. The
    prompt counts as text.

    Device: n, the row's tokens [T].
    """

    reads_history = True

    def __init__(self, n: int) -> None:
        self._n = n

    def edit(self, view: View) -> Edit | None:
        if view.length < self._n:
            return None
        history = view.history()
        windows = np.lib.stride_tricks.sliding_window_view(history, self._n, axis=-1)  # [B, K, T-n+1, n]
        suffix = history[:, :, None, view.length + 1 - self._n :]  # [B, K, 1, n-1]
        repeats = (windows[..., :-1] == suffix).all(axis=-1)
        return Edit("ban", compact(windows[..., -1], repeats)) if repeats.any() else None


def from_options(options: GenerationOptions, vocabulary_size: int) -> NoRepeatNgram | None:
    return NoRepeatNgram(options.no_repeat_ngram_size) if options.no_repeat_ngram_size else None
