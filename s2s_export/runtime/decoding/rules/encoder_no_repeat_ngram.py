"""`encoder_no_repeat_ngram_size`: no n consecutive tokens of the source occur in the output."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, compact

ORDER = 50
OPTIONS = {"encoder_no_repeat_ngram_size": Option(values.integer(0), default=0, example=2, reads_source=True)}


class EncoderNoRepeatNgram(SparseRule):
    """`EncoderNoRepeatNGramLogitsProcessor`: bans the token that follows the last n-1 tokens somewhere in the source.

    transformers also reads the padding of a source as text; here, padding is ignored.
    Device: n, the source's ids [S], the row's last n-1 tokens.
    """

    def __init__(self, n: int, vocabulary_size: int) -> None:
        self._n = n
        self._vocabulary_size = vocabulary_size
        self.reads_history = n > 1

    def edit(self, view: View) -> Edit | None:
        if view.length < self._n - 1 or view.sources.shape[1] < self._n:
            return None
        windows = np.lib.stride_tricks.sliding_window_view(view.sources, self._n, axis=-1)[:, None]  # [B, 1, W, n]
        last = windows[..., -1]
        can_be_banned = (last >= 0) & (last < self._vocabulary_size)
        if self._n == 1:
            return Edit("ban", compact(last, can_be_banned))
        suffix = view.history()[:, :, None, view.length + 1 - self._n :]  # [B, K, 1, n-1]
        repeats = (windows[..., :-1] == suffix).all(axis=-1) & can_be_banned
        return Edit("ban", compact(np.broadcast_to(last, repeats.shape), repeats)) if repeats.any() else None

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("ban", "source_ngram", n=self._n)


def from_options(options: GenerationOptions, vocabulary_size: int) -> EncoderNoRepeatNgram | None:
    n = options.encoder_no_repeat_ngram_size
    return EncoderNoRepeatNgram(n, vocabulary_size) if n else None
