"""`min_length_ratio`: no end token before there are that many generated tokens for each token of the source."""

from __future__ import annotations

import math

import numpy as np

from .. import option_values as values
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import NO_TOKEN, Edit, SparseRule, View

ORDER = 71  # after min_length
OPTIONS = {
    "min_length_ratio": Option(
        values.number("a number of at least 0", lambda value: value >= 0.0), default=0.0, reads_source=True
    )
}


class MinLengthRatio(SparseRule):
    """An output has at least ratio * S tokens, rounded up, before its end token; S counts the source's end token too.
    `max_length_ratio` (search_options.py) is its counterpart.

    Device: none.
    """

    def __init__(self, ratio: float, prompt_length: int, eos: tuple[int, ...]) -> None:
        self._ratio = ratio
        self._prompt_length = prompt_length
        self._eos = np.asarray(eos, dtype=np.int64)

    def edit(self, view: View) -> Edit | None:
        n = view.length - self._prompt_length
        is_short = [n < math.ceil(self._ratio * int(size)) for size in (view.sources != NO_TOKEN).sum(axis=1)]
        if not any(is_short):
            return None
        return Edit("ban", np.where(np.asarray(is_short)[:, None, None], self._eos, NO_TOKEN))


def from_options(options: GenerationOptions, vocabulary_size: int) -> MinLengthRatio | None:
    if not options.min_length_ratio or not options.eos_token_id:
        return None
    return MinLengthRatio(options.min_length_ratio, len(options.prompt), options.eos_token_id)
