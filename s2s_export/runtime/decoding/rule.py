"""What a decoding rule is. The rules themselves are one file each in `rules/`.

Letters: B sources, K beams, V vocabulary, n tokens that a rule names.

A rule changes the scores of the next token, like one of transformers' logits processors. In beam search the scores are
log-probabilities, with one beam they are logits. There are two kinds of rules.

*Sparse*: at each step, the rule names the few tokens that it changes, and one of seven ways of treating them, in an
`Edit`. This one definition is executed in three ways: on the whole distribution [B, K, V], on the best M tokens and the
probed ones (`chain.py`), and on a GPU, where an edit is a list of ids with an opcode and a number. Each rule's
docstring says under "Device:" of which constants its edit consists.

*Dense*: the rule needs the whole distribution, and changes all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .device_form import DeviceForm
from .state import Floats, Ints

NO_TOKEN = -1
MINUS_INFINITY = np.float32(-np.inf)


@dataclass(frozen=True, eq=False)
class Edit:
    """How the scores of some tokens change.

    ids [B, K, n] int64, or [1, 1, n] or [B, 1, n] if they are the same for several rows; NO_TOKEN fills unused places.
    A token may be named several times. With x the score before:

        ban    x = -inf
        add    x = x + the sum of `amount` over the token's mentions; amount [n] float32
        scale  x = x * amount where x < 0, x / amount elsewhere
        grow   x = x + |x| * amount where x is finite
        only   x = 0, and the score of every token that is not named becomes -inf
        keep   x stays, and the score of every token that is not named becomes -inf
        look   nothing changes, but the search sees the token, however unlikely it is
    """

    kind: Literal["ban", "add", "scale", "grow", "only", "keep", "look"]
    ids: Ints
    amount: float | Floats = 0.0


@dataclass
class View:
    """What a rule may read before the next token is chosen.

    length: tokens so far, including the prompt. sources [B, S] int64, padded with NO_TOKEN.
    history: returns the tokens so far, [B, K, length] int64; for rules with `reads_history` only.
    numbers [B]: the numbers by which the caller tells sources apart; None where nobody gave any.
    """

    length: int
    sources: Ints
    history: Callable[[], Ints]
    numbers: Ints | None = None


class Rule:
    """shift_invariant: whether adding a constant to all scores of a row leads to the same choice.
    reads_history: whether the rule reads `View.history`.
    """

    shift_invariant: bool = True
    reads_history: bool = False

    def device_form(self, max_length: int) -> DeviceForm | None:
        """The rule for searches on a GPU and in C++, for texts of up to `max_length` tokens, or None without a form."""
        return None


class SparseRule(Rule):
    def edit(self, view: View) -> Edit | None:
        """The change at this step, or None. Returning the same object as before, if it is still right, saves work."""
        raise NotImplementedError


class DenseRule(Rule):
    """is_normalisation: whether all that it does is to make the scores log-probabilities again."""

    is_normalisation: bool = False

    def apply(self, scores: Floats, view: View) -> Floats:
        """The new scores [B, K, V]; the given scores [B, K, V] may be overwritten."""
        raise NotImplementedError


def shared_ids(ids: tuple[int, ...] | list[int]) -> Ints:
    """[1, 1, n]: the same tokens for every row."""
    return np.asarray(ids, dtype=np.int64).reshape(1, 1, -1)


def compact(ids: Ints, wanted: NDArray[np.bool_]) -> Ints:
    """The wanted ones of ids [B, K, W] at the front of each row, cut to the longest row: [B, K, n], n <= W."""
    counts = wanted.sum(axis=-1)
    n = int(counts.max(initial=0))
    out = np.full((*ids.shape[:2], n), NO_TOKEN, dtype=np.int64)
    if n:
        rows = np.nonzero(wanted)
        places = np.cumsum(wanted, axis=-1)[rows] - 1
        out[rows[0], rows[1], places] = ids[rows]
    return out
