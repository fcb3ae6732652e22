"""Decodes more sources than an engine takes at once as one batch, in parts that have a state each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ...decoding.state import DecodeState, Ints, StepQuery, StepResult
from ...sources import Source


class PartedState:
    """See `decoding.state.DecodeState`. begin: makes the state of one part. At most `size` sources go into a part."""

    def __init__(self, begin: Callable[[Sequence[Source]], DecodeState], sources: Sequence[Source], size: int) -> None:
        self._parts = [begin(sources[i : i + size]) for i in range(0, len(sources), size)]
        self.n_sources = len(sources)
        self.n_beams = self._parts[0].n_beams
        self.vocabulary_size = self._parts[0].vocabulary_size

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        found = []
        start = 0
        for part in self._parts:
            rows = slice(start, start + part.n_sources)
            probes = None if query.probe_ids is None else query.probe_ids[rows]
            asked = StepQuery(query.n_candidates, probes, query.dense, query.attention)
            found.append(part.step(tokens[rows], parents[rows], asked))
            start += part.n_sources
        return StepResult(**{f.name: _joined([getattr(part, f.name) for part in found]) for f in fields(StepResult)})

    def keep(self, sources: Ints) -> None:
        start, kept = 0, []
        for part in self._parts:
            mine = sources[(sources >= start) & (sources < start + part.n_sources)] - start
            start += part.n_sources
            if len(mine) == part.n_sources:
                kept.append(part)
            elif len(mine):
                part.keep(mine)
                kept.append(part)
        self._parts = kept
        self.n_sources = len(sources)


def _joined(arrays: list[Any]) -> Any:
    if arrays[0] is None:
        return None
    if arrays[0].ndim > 3:  # attention [B,K,L,H,S]: parts may be padded to different lengths
        length = max(array.shape[-1] for array in arrays)
        arrays = [np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, length - a.shape[-1])]) for a in arrays]
    return np.concatenate(arrays)
