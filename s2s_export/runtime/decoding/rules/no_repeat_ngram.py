"""`no_repeat_ngram_size`: no n consecutive tokens occur twice."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, compact

ORDER = 40
OPTIONS = {"no_repeat_ngram_size": Option(values.integer(0), default=0, example=2)}


class NoRepeatNgram(SparseRule):
    """`NoRepeatNGramLogitsProcessor`: bans the token that followed an earlier occurrence of the last n-1 tokens. The
    prompt is part of the text.

    Device: n, the row's tokens [T].
    """

    reads_history = True

    def __init__(self, n: int) -> None:
        self._n = n

    def edit(self, view: View) -> Edit | None:
        if view.length < self._n:
            return None
        history = view.history()
        n_windows = view.length + 1 - self._n
        repeats = np.ones((*history.shape[:2], n_windows), dtype=bool)
        for i in range(self._n - 1):
            repeats &= history[:, :, i : i + n_windows] == history[:, :, n_windows + i, None]
        return Edit("ban", compact(history[:, :, self._n - 1 :], repeats)) if repeats.any() else None

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("ban", "ngram", n=self._n)


def from_options(options: GenerationOptions, vocabulary_size: int) -> NoRepeatNgram | None:
    return NoRepeatNgram(options.no_repeat_ngram_size) if options.no_repeat_ngram_size else None
