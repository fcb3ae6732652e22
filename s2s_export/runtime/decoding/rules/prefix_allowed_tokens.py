"""`prefix_allowed_tokens_fn`: a function of the caller's says which tokens may follow a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ....errors import InputError
from .. import option_values as values
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import NO_TOKEN, Edit, SparseRule, View

ORDER = 85  # before forced_bos, as in transformers
OPTIONS = {"prefix_allowed_tokens_fn": Option(values.function)}


class PrefixAllowedTokens(SparseRule):
    """`PrefixConstrainedLogitsProcessor` (arXiv 2010.00904): function(source's number, token ids) -> allowed ids.

    The token ids are a numpy array [length] with the decoder prompt, in place of transformers' tensor.
    Device: none.
    """

    reads_history = True

    def __init__(self, function: Callable[[int, Any], Iterable[int]], size: int) -> None:
        self._function = function
        self._size = size

    def edit(self, view: View) -> Edit:
        history = view.history()
        numbers = range(len(history)) if view.numbers is None else view.numbers.tolist()
        rows = [
            [self._allowed(number, tokens) for tokens in of_source]
            for number, of_source in zip(numbers, history, strict=True)
        ]
        n = max(1, *(len(row) for of_source in rows for row in of_source))
        ids = [[[*row, *[NO_TOKEN] * (n - len(row))] for row in of_source] for of_source in rows]
        return Edit("keep", np.asarray(ids, dtype=np.int64))

    def _allowed(self, number: int, tokens: Any) -> list[int]:
        try:
            found = [int(i) for i in self._function(number, tokens.copy())]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"prefix_allowed_tokens_fn failed for source {number} ({error}); expected it to return a list of ids"
            ) from error
        if not found or not all(0 <= i < self._size for i in found):
            raise InputError(
                f"prefix_allowed_tokens_fn returned {found[:8]} for source {number}; expected at least one token id, "
                f"each from 0 to {self._size - 1}"
            )
        return found


def from_options(options: GenerationOptions, vocabulary_size: int) -> PrefixAllowedTokens | None:
    function = options.prefix_allowed_tokens_fn
    return PrefixAllowedTokens(function, vocabulary_size) if function is not None else None
