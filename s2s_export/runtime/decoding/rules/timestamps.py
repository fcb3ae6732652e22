"""`timestamp_begin`: the order of times among the words of a speech model (2212.04356, section 2.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..numerics import logarithms, sum_of_exponentials
from ..option import Option
from ..rule import MINUS_INFINITY, DenseRule, View
from ..state import Floats, Ints

ORDER = 145
# timestamp_begin: the id of <|0.00|>, all ids from it on being times, and the id below it <|notimestamps|>. Set by
# whoever makes the prompt (runtime/speech/). Of models without times there is none.
OPTIONS = {
    "timestamp_begin": Option(values.token_id, example=5, token_ids=lambda token: [token]),
    "max_initial_timestamp_index": Option(values.integer(0)),
}


class Timestamps(DenseRule):
    """`WhisperTimeStampLogitsProcessor`. Of the tokens generated so far:

    the first is a time, at most `most_first` steps from the beginning; times come in pairs, but for the first and the
    last one; they never fall; and a time is taken if all times together are likelier than the best other token.

    Device: the first time, the end of the text, the prompt's length and `most_first`, -1 for none.
    """

    reads_history = True

    def __init__(self, begin: int, end_of_text: int, prompt_length: int, most_first: int | None) -> None:
        self._begin = begin
        self._end = end_of_text
        self._most_first = most_first
        self._prompt_length = prompt_length

    def device_form(self, max_length: int) -> DeviceForm:
        most_first = -1 if self._most_first is None else self._most_first
        return DeviceForm("times", ids=(self._begin, self._end, self._prompt_length, most_first))

    def apply(self, scores: Floats, view: View) -> Floats:
        begin = self._begin
        scores[..., begin - 1] = MINUS_INFINITY
        texts = view.history()[:, :, self._prompt_length :]  # [B, K, T]
        if not texts.shape[2]:
            scores[..., :begin] = MINUS_INFINITY
            if self._most_first is not None:
                scores[..., begin + self._most_first + 1 :] = MINUS_INFINITY
        else:
            self._order(scores, texts)
        times_win = _log_sums(scores[..., begin:]) > scores[..., :begin].max(axis=-1)
        scores[times_win, :begin] = MINUS_INFINITY
        return scores

    def _order(self, scores: Floats, texts: Ints) -> None:
        begin = self._begin
        is_time = texts >= begin
        is_last, is_before = is_time[..., -1], is_time[..., -2] if texts.shape[2] > 1 else np.True_
        scores[is_last & is_before, begin:] = MINUS_INFINITY  # a pair is complete: text follows
        opened = is_last & ~is_before
        scores[opened, : self._end] = MINUS_INFINITY  # its second time follows, or the end
        place = texts.shape[2] - 1 - is_time[..., ::-1].argmax(axis=-1)
        latest = np.take_along_axis(texts, place[..., None], axis=-1)[..., 0]
        least = np.where(is_time.any(axis=-1), latest + ~opened, begin)
        below = np.arange(begin, scores.shape[-1]) < least[..., None]
        scores[..., begin:][below] = MINUS_INFINITY


def _log_sums(scores: Floats) -> NDArray[np.float64]:
    """[B, K] of scores [B, K, n]: the logarithm of the sum of their exponentials. Scores that are log-probabilities but
    for a constant do: it is on both sides of the comparison."""
    best = scores.max(axis=-1)
    found: NDArray[np.float64] = best.astype(np.float64)
    is_finite = np.isfinite(best)
    found[is_finite] += logarithms(sum_of_exponentials(scores[is_finite] - best[is_finite][:, None]))
    return found


def from_options(options: GenerationOptions, vocabulary_size: int) -> Timestamps | None:
    if options.timestamp_begin is None:
        return None
    end = options.eos_token_id[0] if options.eos_token_id else options.timestamp_begin
    return Timestamps(options.timestamp_begin, end, len(options.prompt), options.max_initial_timestamp_index)
