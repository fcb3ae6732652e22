"""The bookkeeping of cache slots: where the keys and values of each beam lie, in the three forms that graphs take.

Letters: B sources, K beams, C positions, N slots. A step writes K neighbouring slots, one a beam.

    Ancestors   the bundle's own graphs: slot t*K + k is what beam k wrote at position t; it never moves
    Positions   CPU engines with our own kernels (plugins/cpu): the same, with the position outermost
    Slots       CPU engines with ONNX Runtime's (building/cpu/onnxruntime/slots.py): the graph is told which slots a
                beam sees, so dead ones are used again
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..decoding.ancestors import AncestorTable
from ..decoding.state import Floats, Ints

MASKED = np.float32(-1e9)  # added to the scores of slots that a beam must not see: exp of it is 0
FIRST_CAPACITY = 16  # positions a cache has room for at first
RESERVED = 128  # the same for caches whose empty positions are never read
GROWTH = 1.5  # a full cache of positions grows by this factor, so that copies stay below twice the tokens decoded
FEWEST_FREE = 8  # groups of slots that are free at least, after unused ones were dropped
MOVING = 3  # the cost of moving a slot, as a multiple of attention reading it: a read, a write, a new page


class Ancestors:
    """Slots that an ancestor table [B,K,C] finds; see decoding/ancestors.py."""

    def __init__(self, n_sources: int, n_beams: int, limit: int | None, capacity: int = FIRST_CAPACITY) -> None:
        self.n_beams = n_beams
        self._limit = limit
        self._table = AncestorTable.of(n_sources, n_beams, self._capacity(capacity))

    def _capacity(self, wanted: int) -> int:
        return wanted if self._limit is None else min(wanted, self._limit)

    @property
    def n_slots(self) -> int:
        return self._table.capacity * self.n_beams

    @property
    def inputs(self) -> dict[str, Any]:
        """The graph's inputs by name. After `make_room` and `keep` they are new arrays."""
        return {"ancestors": self._table.array}

    @property
    def is_full(self) -> bool:
        return self._table.is_full

    def follow(self, parents: Ints) -> None:
        """A step: beam k continues the history of beam parents[b,k] and writes its own slot."""
        self._table.follow(parents)

    def begin(self, n: int) -> None:
        """Instead of the first n steps: the tokens of a prompt, which all beams share, in the slots of beam 0."""
        self._table.grow(max(self._table.capacity, self._capacity(n + FIRST_CAPACITY)))
        self._table.share(n)

    def place(self, cache: Floats, found: Floats) -> None:
        """Writes keys or values of those tokens, found [B,H,n,D], into a new cache."""
        n = found.shape[2]
        cache[:, :, : n * self.n_beams : self.n_beams] = found

    def made_steps(self, n_positions: int) -> None:
        """Somebody else made the steps, in `inputs` as they lie in memory: so many positions are written."""
        self._table.n_positions = n_positions

    def make_room(self) -> None:
        """Makes room for another step. The caches must be moved with `move` afterwards."""
        n = self._table.n_positions
        self._table.grow(self._capacity(max(n + 1, int(n * GROWTH))))

    def move(self, old: Floats) -> Floats:
        """A cache as it was before `make_room`, as it is after it."""
        return _moved(old, self.n_slots, None)

    def keep(self, sources: Ints) -> None:
        self._table.keep(sources)

    def new(self, shape: list[int], dtype: str) -> Floats:
        """A cache for the first step."""
        return np.zeros(shape, dtype=dtype)

    def kept(self, cache: Floats, sources: Ints) -> Floats:
        """A copy of a cache with these sources only."""
        return np.ascontiguousarray(cache[sources])


class Positions(Ancestors):
    """ancestors [B,K,C] for caches [C,B,H,K,D], of which the first n positions are written and the rest is never read.

    Room for many positions takes no memory before it is used: the system gives a page when it is first written.
    """

    def __init__(self, n_sources: int, n_beams: int, limit: int | None) -> None:
        super().__init__(n_sources, n_beams, limit, RESERVED)

    def new(self, shape: list[int], dtype: str) -> Floats:
        return np.empty(shape, dtype=dtype)

    def place(self, cache: Floats, found: Floats) -> None:
        cache[: found.shape[2], :, :, 0] = found.transpose(2, 0, 1, 3)

    def move(self, old: Floats) -> Floats:
        grown: Floats = np.empty((self.n_slots // self.n_beams, *old.shape[1:]), dtype=old.dtype)
        n = self._table.n_positions
        grown[:n] = old[:n]
        return grown

    def kept(self, cache: Floats, sources: Ints) -> Floats:
        fewer: Floats = np.empty((len(cache), len(sources), *cache.shape[2:]), dtype=cache.dtype)
        n = self._table.n_positions
        np.take(cache[:n], sources, axis=1, out=fewer[:n])
        return fewer


class Slots:
    """self_mask [B,1,K,N], write_group [1] and slot_positions [B,N] of building/cpu/onnxruntime/slots.py."""

    def __init__(self, n_sources: int, n_beams: int, limit: int | None) -> None:
        self.n_beams = n_beams
        self.n_slots = FEWEST_FREE * n_beams
        self._step = 0
        self._n_used = 0  # groups that are written
        self._order: Ints | None = None
        self._mask: Floats = np.full((n_sources, 1, n_beams, self.n_slots), MASKED, dtype=np.float32)
        self._positions: Ints = np.zeros((n_sources, self.n_slots), dtype=np.int64)
        self._group: Ints = np.zeros(1, dtype=np.int64)
        self._own: Floats = np.where(np.eye(n_beams, dtype=bool), np.float32(0), MASKED)

    @property
    def inputs(self) -> dict[str, Any]:
        """The graph's inputs by name. After `make_room` and `keep` they are new arrays."""
        return {"self_mask": self._mask, "write_group": self._group, "slot_positions": self._positions}

    @property
    def is_full(self) -> bool:
        return self._n_used * self.n_beams == self.n_slots

    def follow(self, parents: Ints) -> None:
        """A step: beam k continues the history of beam parents[b,k] and writes its own slot."""
        first = self._n_used * self.n_beams
        seen = self._mask[:, 0, :, :first]
        if first and (parents != np.arange(self.n_beams)).any():
            seen[...] = np.take_along_axis(seen, parents[:, :, None], axis=1)
        self._mask[:, 0, :, first : first + self.n_beams] = self._own
        self._positions[:, first : first + self.n_beams] = self._step
        self._group[0] = self._n_used
        self._n_used += 1
        self._step += 1

    def begin(self, n: int) -> None:
        """Instead of the first n steps: the tokens of a prompt, which all beams share, in n slots side by side."""
        self._n_used = -(-n // self.n_beams)
        self.n_slots = (self._n_used + FEWEST_FREE) * self.n_beams
        n_sources = len(self._positions)
        self._mask = np.full((n_sources, 1, self.n_beams, self.n_slots), MASKED, dtype=np.float32)
        self._mask[..., :n] = 0
        self._positions = np.zeros((n_sources, self.n_slots), dtype=np.int64)
        self._positions[:, :n] = np.arange(n)
        self._step = n

    def place(self, cache: Floats, found: Floats) -> None:
        """Writes keys or values of those tokens, found [B,H,n,D], into a new cache."""
        cache[:, :, : found.shape[2]] = found

    def make_room(self) -> None:
        """Drop the slots that no beam sees any more, and be ready for more steps. Caches have to be moved after it.

        With F free groups, attention reads F*K slots in vain, and moving L live slots costs MOVING*L every F steps. The
        sum is least at F = sqrt(MOVING * L / K).
        """
        is_live = (self._mask[:, 0] == 0).any(axis=1)  # [B,N]
        n_live = int(is_live.sum(axis=1).max())
        self._n_used = -(-n_live // self.n_beams)
        n_kept = self._n_used * self.n_beams
        free = max(FEWEST_FREE, math.isqrt(MOVING * n_live // self.n_beams))
        self._order = None
        if n_kept < self.n_slots:
            # Live slots first, in order. Where a source has fewer, dead ones fill it up and stay masked.
            self._order = np.argsort(~is_live, axis=1, kind="stable")[:, :n_kept]
            self._mask = np.take_along_axis(self._mask, self._order[:, None, None], axis=3)
            self._positions = np.take_along_axis(self._positions, self._order, axis=1)
        self.n_slots = n_kept + free * self.n_beams
        more = self.n_slots - n_kept
        self._mask = np.pad(self._mask, ((0, 0), (0, 0), (0, 0), (0, more)), constant_values=MASKED)
        self._positions = np.pad(self._positions, ((0, 0), (0, more)))

    def move(self, old: Floats) -> Floats:
        """A cache [B,H,N,D] as it was before `make_room`, as it is after it."""
        return _moved(old, self.n_slots, self._order)

    def new(self, shape: list[int], dtype: str) -> Floats:
        """A cache for the first step: zeros, as a slot that was never written is masked, and 0 * NaN is NaN."""
        return np.zeros(shape, dtype=dtype)

    def kept(self, cache: Floats, sources: Ints) -> Floats:
        """A copy of a cache with these sources only."""
        return np.ascontiguousarray(cache[sources])

    def keep(self, sources: Ints) -> None:
        self._mask = np.ascontiguousarray(self._mask[sources])
        self._positions = np.ascontiguousarray(self._positions[sources])


def _moved(old: Floats, n_slots: int, order: Ints | None) -> Floats:
    """A copy of `old` with n_slots slots: those of `order` [B,n], or all of them, and then empty ones."""
    n = old.shape[2] if order is None else order.shape[1]
    new: Floats = np.empty((*old.shape[:2], n_slots, old.shape[3]), dtype=old.dtype)
    # Zeros: a slot that was never written is masked, and 0 * NaN would still be NaN.
    new[:, :, n:] = 0
    if order is None:
        new[:, :, :n] = old
    else:
        for source, chosen in enumerate(order):
            new[source, :, :n] = old[source][:, chosen]
    return new
