"""Which tokens end an output: an end token, the longest length allowed, or a text that stops it.

Letters: B sources, K rows, C candidates.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .options import GenerationOptions
from .state import Ints
from .steps import Steps

Bools = NDArray[np.bool_]


class Endings:
    """`max_length`, `max_length_ratio`, `eos_token_id` and `stop_strings`, asked before a token is appended."""

    def __init__(self, options: GenerationOptions, steps: Steps) -> None:
        self._steps = steps
        self._end_tokens = options.eos_token_id
        self._prompt_length = steps.length
        self._limit: int | Ints = options.max_length
        if options.max_length_ratio is not None:
            allowed = [max(1, math.ceil(n * options.max_length_ratio)) for n in steps.source_lengths]
            self._limit = np.minimum(np.asarray(allowed)[:, None] + steps.length, options.max_length)  # [B, 1]
        self._stops = options.stop_strings

    def room(self) -> list[int]:
        """How many more tokens each source in the batch may get."""
        limit = self._limit if isinstance(self._limit, int) else self._limit[self._steps.present]
        room = np.broadcast_to(np.asarray(limit).reshape(-1) - self._steps.length, len(self._steps.present))
        return [int(n) for n in room]

    def of(self, tokens: Ints, parents: Ints | None) -> Bools:
        """Whether each token [B, C] ends the output that continues row `parents` [B, C]; the row itself if None."""
        length = self._steps.length + 1
        if isinstance(self._limit, int):
            ends = np.full(tokens.shape, length >= self._limit)
        else:
            ends = np.broadcast_to(length >= self._limit[self._steps.present], tokens.shape).copy()
        for eos in self._end_tokens:
            ends |= tokens == eos
        if self._stops:
            self._find_stops(tokens, parents, ends)
        return ends

    def _find_stops(self, tokens: Ints, parents: Ints | None, ends: Bools) -> None:
        history = self._steps.history()[:, :, self._prompt_length :]
        known: dict[tuple[int, int, int], bool] = {}
        for b, c in np.argwhere(~ends).tolist():
            row = c if parents is None else int(parents[b, c])
            key = (b, row, int(tokens[b, c]))
            if key not in known:
                known[key] = self._stops.end([*history[b, row].tolist(), key[2]])
            ends[b, c] = known[key]
