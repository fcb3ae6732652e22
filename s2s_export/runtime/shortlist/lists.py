"""The lists as a file: little-endian uint32 throughout.

    offsets    [F + 2]   where the list of source token f begins; list F, the last, has the tokens that every batch gets
    ids        [offsets[F + 1]]   target ids, ascending in each list

F is the size of the source vocabulary, which is in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError

Ids = NDArray[np.int64]
TYPE = np.dtype("<u4")


class Lists:
    """offsets [F + 2] and ids, as in the file. n_target: V, the size of the target vocabulary."""

    def __init__(self, offsets: NDArray[np.uint32], ids: NDArray[np.uint32], n_target: int) -> None:
        self._offsets = offsets
        self._ids = ids
        self.n_target = n_target

    @property
    def n_source(self) -> int:
        return len(self._offsets) - 2

    def of(self, token: int) -> Ids:
        """Target ids of a source token; empty if it did not occur in the parallel text."""
        return self._ids[self._offsets[token] : self._offsets[token + 1]].astype(np.int64)

    @property
    def always(self) -> Ids:
        return self.of(self.n_source)

    def union(self, sources: Iterable[Sequence[int]], others: Iterable[int] = ()) -> Ids:
        """Target ids that a batch of sources may need, ascending. others: ids to include."""
        wanted = np.zeros(self.n_target, dtype=bool)
        wanted[self.always] = True
        wanted[list(others)] = True
        for token in {token for source in sources for token in source}:
            wanted[self._ids[self._offsets[token] : self._offsets[token + 1]]] = True
        return np.flatnonzero(wanted)

    def write(self, path: Path) -> None:
        path.write_bytes(self._offsets.astype(TYPE).tobytes() + self._ids.astype(TYPE).tobytes())

    @classmethod
    def make(cls, by_source: Sequence[Sequence[int]], always: Sequence[int], n_target: int) -> Lists:
        parts = [np.unique(np.asarray(ids, dtype=np.uint32)) for ids in (*by_source, always)]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        return cls(offsets.astype(np.uint32), np.concatenate(parts), n_target)

    @classmethod
    def read(cls, path: Path, n_source: int, n_target: int) -> Lists:
        """Raises BundleError for a file that is damaged or belongs to other vocabularies."""
        values = np.fromfile(path, dtype=TYPE)
        offsets, ids = values[: n_source + 2], values[n_source + 2 :]
        is_whole = len(offsets) == n_source + 2 and offsets[0] == 0 and offsets[-1] == len(ids)
        if not is_whole or (np.diff(offsets.astype(np.int64)) < 0).any() or (len(ids) and ids.max() >= n_target):
            raise BundleError(f"{path}: is damaged, or was made for another model; make it again with `s2s shortlist`")
        return cls(offsets, ids, n_target)
