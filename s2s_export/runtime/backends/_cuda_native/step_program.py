"""What the steps of all models share: where the search's tensors lie, and the head that finds candidates.

Letters: B sources, K beams, C positions, V vocabulary.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from ...device_search.step_executor import Attention, CandidateTables
from .loaded import Buffer, Loaded, Program, launches, structures


@dataclass(frozen=True)
class Kept:
    """Memory that a step leaves to the next ones. The first n_parts parts of it are alike: where a cache has room for
    more positions, each part of it is longer."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    n_parts: int

    @property
    def part_bytes(self) -> int:
        return int(np.prod(self.shape)) // self.n_parts * np.dtype(self.dtype).itemsize


class StepProgram:
    """A step of B sources with K beams. token [B, K], position [1] and ancestors [B, K, C] int64 are read, logits
    [B, K, V] fp32 written, and what is `kept` is changed in place. Its last launch is the output projection."""

    kept: list[Kept]
    attention: Attention | None = None  # the cross-attention weights that it writes as well

    def __init__(self, loaded: Loaded, n_sources: int, n_beams: int, capacity: int, buffer: Buffer) -> None:
        B, K, C = n_sources, n_beams, capacity
        self.n_beams, self.capacity, self.n_rows = n_beams, capacity, B * K
        self.token = buffer("token", (B, K), "int64")
        self.position = buffer("position", (1,), "int64")
        self.ancestors = buffer("ancestors", (B, K, C), "int64")
        self.logits = buffer("logits", (B, K, loaded.model.vocabulary), "float32")
        self.program = Program(loaded)
        self._element = loaded.model.element

    @property
    def _head(self) -> ctypes.Structure:
        return self.program.last

    def candidate_lists(self, candidates: int) -> int:
        """See `step_executor.FindsCandidates`."""
        if not launches.is_skinny(self.n_rows):
            return 0  # the head's product is one of many rows, perhaps a library's
        head = self._head
        return int(launches.candidate_lists(head.rows, head.inputs, head.limit, candidates))

    def run_candidates(self, stream: int, tables: CandidateTables) -> None:
        """A step that finds each row's best tokens and leaves no logits."""
        given = structures.HeadParameters(
            product=self._head, candidates=tables.candidates, lists=tables.lists, **tables.addresses
        )
        if tables.rules is not None:
            given.rules = tables.rules
        self.program.run_with(launches.head_candidates(self._element, given), given, stream)
