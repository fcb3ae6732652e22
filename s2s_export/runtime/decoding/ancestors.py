"""The ancestor table: where the keys and values of a beam's history lie once beams have changed places.

Letters: B sources, K beams, T positions that were decoded, C positions that there is room for.

At each position t every beam writes its key and value once, into a slot of its own, and nothing moves them later. When
beams change places, the history of beam k is scattered over the slots of several beams. ancestors[b, k, t] is the beam
whose slot holds position t of the history that beam k continues. A decoder step reads the table to find its keys and
values. A step at position t, in which beam k continues the history of beam parents[b, k], changes it by

    ancestors[b, k, :t] = ancestors[b, parents[b, k], :t]
    ancestors[b, k, t] = k

For example, with K = 2 and t = 2, parents [1, 1] make both beams go on from beam 1:

    before  [[0, 0], [1, 1]]        after  [[1, 1, 0], [1, 1, 1]]

The search on a GPU updates its table in a kernel (plugins/beam_search/update.cuh); all others use this class.
"""

from __future__ import annotations

import numpy as np

from .state import Ints


class AncestorTable:
    """The table of a batch. array [B, K, C] int64: its memory, which is overwritten and then changed in place.

    Positions from T on are the beam's own, so that a table that nobody changed is right for one that never moves.
    """

    def __init__(self, array: Ints) -> None:
        self.array = array
        self.n_positions = 0  # T
        array[...] = np.arange(array.shape[1])[:, None]

    @classmethod
    def of(cls, n_sources: int, n_beams: int, capacity: int) -> AncestorTable:
        """A table in memory of its own."""
        return cls(np.empty((n_sources, n_beams, capacity), np.int64))

    @property
    def capacity(self) -> int:
        """C."""
        return int(self.array.shape[2])

    @property
    def is_full(self) -> bool:
        return self.n_positions == self.capacity

    def follow(self, parents: Ints) -> bool:
        """One step, in place. parents [B, k] int64, of the first k <= K beams: whose history each continues.

        At the first step there is no history, and parents say nothing. Returns whether entries before this step's
        position changed.
        """
        t, n_beams = self.n_positions, parents.shape[1]
        self.n_positions += 1
        if t == 0 or (parents == np.arange(n_beams)).all():
            return False
        past = self.array[:, :n_beams, :t]
        past[...] = np.take_along_axis(past, parents[:, :, None], axis=1)
        return True

    def share(self, n: int) -> None:
        """Begins with n positions whose slots are all of beam 0, as after n steps of which every beam is the same."""
        self.array[:, :, :n] = 0
        self.n_positions = n

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` positions, in new memory."""
        old = self.array
        self.array = np.empty((*old.shape[:2], capacity), np.int64)
        self.array[...] = np.arange(old.shape[1])[:, None]
        self.array[:, :, : self.n_positions] = old[:, :, : self.n_positions]

    def keep(self, sources: Ints, out: Ints | None = None) -> None:
        """Goes on with these sources only, in the memory `out` [len(sources), K, C], which may overlap with the table's
        own; by default in new memory."""
        kept = np.ascontiguousarray(self.array[sources])
        if out is not None:
            out[...] = kept
        self.array = kept if out is None else out
