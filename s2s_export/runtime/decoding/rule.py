"""What a decoding rule is. The rules themselves are one file each in `rules/`.

Letters: B sources, K beams, V vocabulary, n tokens that a rule names.

A rule changes the scores of the next token, as one of transformers' logits processors does: in beam search the scores
are log-probabilities, with one beam they are logits. It is one of two kinds.

*Sparse*: at each step it names the few tokens that it changes and one of five ways of changing them, an `Edit`. That
single definition serves three executions: on the whole distribution [B, K, V], on the best M tokens and the probed
ones (`chain.py`), and on a device, where an edit is a list of ids with an opcode and a number. Each rule's docstring
says under "Device:" which constants its edit is made of.

*Dense*: it needs the whole distribution, and says how to change that.
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

    ids [B, K, n] int64, or [1, 1, n] or [B, 1, n] where rows agree; NO_TOKEN means none there. A token may be named
    several times. With x the score before:

        ban    x = -inf
        add    x = x + the sum of `amount` over the token's mentions; amount [n] float32
        scale  x = x * amount where x < 0, x / amount elsewhere
        grow   x = x + |x| * amount where x is finite
        only   x = 0, and the score of every token that is not named becomes -inf
    """

    kind: Literal["ban", "add", "scale", "grow", "only"]
    ids: Ints
    amount: float | Floats = 0.0


@dataclass
class View:
    """What a rule may look at when the next token is about to be chosen.

    length: tokens so far, prompt included. sources [B, S] int64, padded with NO_TOKEN.
    history: makes the tokens so far, [B, K, length] int64; available to rules with `reads_history`.
    """

    length: int
    sources: Ints
    history: Callable[[], Ints]


class Rule:
    """shift_invariant: scores that differ by a constant a row lead to the same choice.
    reads_history: looks at `View.history`.
    """

    shift_invariant: bool = True
    reads_history: bool = False

    def device_form(self, max_length: int) -> DeviceForm | None:
        """The same rule for a device, for texts of up to `max_length` tokens. None: it has no such form."""
        return None


class SparseRule(Rule):
    def edit(self, view: View) -> Edit | None:
        """The change at this step, None for no change. The same object while nothing has changed saves work."""
        raise NotImplementedError


class DenseRule(Rule):
    def apply(self, scores: Floats, view: View) -> Floats:
        """New scores [B, K, V] from scores [B, K, V], which may be overwritten."""
        raise NotImplementedError


def shared_ids(ids: tuple[int, ...] | list[int]) -> Ints:
    """[1, 1, n]: the same tokens for every row."""
    return np.asarray(ids, dtype=np.int64).reshape(1, 1, -1)


def compact(ids: Ints, wanted: NDArray[np.bool_]) -> Ints:
    """Moves the wanted ids [B, K, W] of each row to the front and cuts to the longest row: [B, K, n], n <= W."""
    counts = wanted.sum(axis=-1)
    n = int(counts.max(initial=0))
    out = np.full((*ids.shape[:2], n), NO_TOKEN, dtype=np.int64)
    if n:
        rows = np.nonzero(wanted)
        places = np.cumsum(wanted, axis=-1)[rows] - 1
        out[rows[0], rows[1], places] = ids[rows]
    return out
