"""The decoder step of an open batch, its operators called directly (direct.py), for the searches of several cohorts.

ONNX Runtime's work between the nodes of a step and around it is the same for one source as for many, and an open batch
makes more steps of few sources than a whole one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.onnxruntime import OnnxRuntimeBackend
from ..decoding.joining import Until
from ..decoding.state import StepQuery, StepResult
from ..native_graphs import library
from ..native_graphs.graph import tensors
from .loop import DIRECT, Opened, Sessions

OF_BATCH = ("token", "position", "places", "positions", "ancestors")


@dataclass(frozen=True)
class Made:
    """Steps that were made of an open batch. statuses: what each search has to tell, for its `made`."""

    n_steps: int
    statuses: list[int]
    needs_room: bool
    has_no_position: bool


class DirectSteps:
    """Makes steps for batches of one backend."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    @classmethod
    def of(cls, backend: Any) -> DirectSteps | None:
        """None where the operators of a backend's step can't be called directly. Raises BackendError."""
        if (
            not isinstance(backend, OnnxRuntimeBackend)
            or backend.operators is None
            or "places" not in {entry["name"] for entry in backend.graphs["decoder_step"]["inputs"]}
        ):
            return None
        opened = Sessions.of(backend).get("decoder_step")
        return cls(opened) if opened.by is DIRECT else None

    def new(self, inputs: Mapping[str, Any], caches: Mapping[str, Any], n_sources: int, n_beams: int) -> DirectStep:
        """A step for so many sources. inputs: arrays by name, but for those of a query; caches: outputs, by name. They
        are read and written where they lie."""
        return DirectStep(self._opened, inputs, caches, n_sources, n_beams)


class DirectStep:
    """Call it with a query that wants neither all log-probabilities nor attention. Raises RuntimeError."""

    def __init__(
        self, opened: Opened, inputs: Mapping[str, Any], caches: Mapping[str, Any], n_sources: int, n_beams: int
    ) -> None:
        self._step: Any = None
        self._library = library.load()
        self._kept: list[Any] = [opened]
        self._shape = (n_sources, n_beams)
        given, written = tensors(dict(inputs), self._kept), tensors(dict(caches), self._kept)
        self._step = opened.new_step(opened.handle, given, len(given), written, len(written), n_sources, n_beams)
        if self._step is None:
            raise RuntimeError(library.error(self._library))
        self._sizes = (0, 0)

    def __del__(self) -> None:
        if self._step is not None:
            self._library.s2s_step_delete(self._step)

    def __call__(self, query: StepQuery) -> StepResult:
        probes = query.probe_ids
        n_candidates, n_probes = query.n_candidates, 0 if probes is None else probes.shape[2]
        if self._sizes != (n_candidates, n_probes):
            self._make_room(n_candidates, n_probes)
        if probes is not None and n_probes:
            self._probes[...] = probes
        rows = self._shape[0] * self._shape[1]
        status = self._library.s2s_step_run(self._step, rows, n_candidates, n_probes, *self._addresses)
        if status == library.FAILED:
            raise RuntimeError(library.error(self._library))
        return StepResult(self._ids, self._log_probs, self._normalizer, self._probed if n_probes else None)

    def many(self, searches: Sequence[Any], batch: Mapping[str, Any], limit: int | None, until: Until) -> Made:
        """Steps for several searches in C++ (`StepSearch`), as plugins/search/open.h makes them.

        batch: arrays token [B,K], position and places [B] of this step's inputs, positions [P], ancestors [P,K,C].
        limit: positions of the model's table. Raises RuntimeError.
        """
        given = library.OpenBatch(
            **{name: library.address(batch[name]) for name in OF_BATCH},
            version=None if until.version is None else library.address(until.version),
            expected=until.expected, seconds=until.seconds, n_sources=len(batch["places"]),
            capacity=batch["ancestors"].shape[2], limit=-1 if limit is None else limit,
        )  # fmt: skip
        handles = (ctypes.c_void_p * len(searches))(*(search.handle for search in searches))
        statuses = (ctypes.c_int32 * len(searches))()
        found = self._library.s2s_open_run(
            self._step, ctypes.byref(given), handles, len(searches), until.most_steps, statuses
        )
        if found == library.FAILED:
            raise RuntimeError(library.error(self._library))
        return Made(given.n_steps, list(statuses), found == library.NEEDS_ROOM, found == library.NO_POSITION)

    def _make_room(self, n_candidates: int, n_probes: int) -> None:
        self._probes = np.zeros((*self._shape, n_probes), dtype=np.int64)
        self._ids = np.empty((*self._shape, n_candidates), dtype=np.int64)
        self._log_probs = np.empty((*self._shape, n_candidates), dtype=np.float32)
        self._normalizer = np.empty(self._shape, dtype=np.float32)
        self._probed = np.empty((*self._shape, n_probes), dtype=np.float32)
        arrays = (self._probes, self._ids, self._log_probs, self._normalizer, self._probed)
        self._addresses = [library.address(array) for array in arrays]
        self._sizes = (n_candidates, n_probes)
