"""The places of an open batch: which are free, and what the encoder gave of the source at each.

Letters: B sources that join, P places, S source length.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decoding.state import Ints

SOURCE_MASK = "source_mask"
ROUNDED_TO = 16  # source positions; arrays grow by as many at least


class Places:
    """Gives the lowest free places, so that little memory is touched while there are few sources."""

    def __init__(self, n_places: int) -> None:
        self._free = list(range(n_places))

    @property
    def n_free(self) -> int:
        return len(self._free)

    def take(self, n: int) -> Ints:
        if n > len(self._free):
            raise ValueError(f"{n} sources join a batch with {len(self._free)} free places; let fewer join")
        return np.asarray([heapq.heappop(self._free) for _ in range(n)], dtype=np.int64)

    def leave(self, places: Ints) -> None:
        for place in places.tolist():
            heapq.heappush(self._free, place)


class SourceArrays:
    """Arrays [P, ...] by name. Those with an axis S have room for the longest source that there was; what lies after a
    source's end is 0. Memory that no source has used is not taken: the system gives a page when it is first written.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]], n_places: int) -> None:
        """entries: name, dtype and shape of each, as a graph's description has them; sources are the first axis."""
        self._entries = {entry["name"]: entry for entry in entries}
        self._n_places = n_places
        self._lengths = np.zeros(n_places, dtype=np.int64)  # how far the arrays are written at each place
        self._capacity = 0
        self.arrays: dict[str, NDArray[Any]] = {}

    @property
    def capacity(self) -> int:
        """S of the arrays."""
        return self._capacity

    def put(self, places: Ints, values: Mapping[str, NDArray[Any]]) -> bool:
        """Write what the encoder gave of sources [B] to their places. Returns whether the arrays are others now."""
        length = int(values[SOURCE_MASK].shape[1])
        grows = length > self._capacity or not self.arrays
        if grows:
            self._grow(-(-length // ROUNDED_TO) * ROUNDED_TO)
        for name, array in self.arrays.items():
            axis = self._axis(name)
            if axis is None:
                array[places] = values[name]
                continue
            along = np.moveaxis(array, axis, 1)  # [P, S, ...]
            along[places, :length] = np.moveaxis(values[name], axis, 1)
            for place in places[self._lengths[places] > length].tolist():
                along[place, length : self._lengths[place]] = 0
        self._lengths[places] = length
        return grows

    def _grow(self, capacity: int) -> None:
        before, used = self.arrays, np.flatnonzero(self._lengths)
        self.arrays = {}
        for name, entry in self._entries.items():
            shape = [self._n_places, *(capacity if size == "S" else size for size in entry["shape"][1:])]
            self.arrays[name] = np.zeros(shape, dtype=entry["dtype"])
            axis = self._axis(name)
            for place in used.tolist() if before else ():
                if axis is None:
                    self.arrays[name][place] = before[name][place]
                else:
                    n = self._lengths[place]
                    to, of = (np.moveaxis(arrays[name], axis, 1) for arrays in (self.arrays, before))
                    to[place, :n] = of[place, :n]
        self._capacity = capacity

    def _axis(self, name: str) -> int | None:
        shape = self._entries[name]["shape"]
        return shape.index("S") if "S" in shape else None
