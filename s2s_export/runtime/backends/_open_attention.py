"""An open batch of a Transformer on ONNX Runtime: sources join and leave between steps, and nothing is moved.

For the engines of a CPU with our own kernels, whose decoder step takes a position and a place for each source
(building/cpu/own/placing.py). Every source has a place in the caches [C,P,H,K,D], in the table of ancestors [P,K,C] and
in what the encoder gave; it counts its positions from its own first step. Letters: B sources of a step, P places, K
beams, C positions, S source length, M candidates, Q probed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...bundle import output_of
from ...errors import BackendError
from ..decoding.joining import Until
from ..decoding.state import Ints, StepQuery, StepResult
from ._places import Places, SourceArrays
from ._slots import GROWTH, RESERVED

MOST_BINDINGS = 64  # kept for steps of other sizes
Key = tuple[int, int, int, bool, bool]  # B, M, Q, dense, attention


class OwnStep(Protocol):
    """Steps of so many sources, one by one or several at a time: native_search/open_step.py."""

    def __call__(self, query: StepQuery) -> StepResult: ...

    def many(self, searches: Sequence[Any], batch: Mapping[str, Any], limit: int | None, until: Until) -> Any: ...


class OwnSteps(Protocol):
    """Makes steps without ONNX Runtime."""

    def new(self, inputs: Mapping[str, Any], caches: Mapping[str, Any], n_sources: int, n_beams: int) -> OwnStep: ...


class AttentionBatch:
    """See `decoding.joining.OpenBatch`.

    graph: the decoder step's inputs and outputs, as engine.json describes them. limit: positions of the model's table,
    or None. failed: makes an error of the library ours, told where it happened. steps: makes the steps that want
    neither all log-probabilities nor attention, without ONNX Runtime.
    """

    def __init__(
        self,
        open_session: Callable[[], Any],
        graph: Mapping[str, Any],
        n_beams: int,
        n_places: int,
        vocabulary_size: int,
        limit: int | None,
        failed: Callable[[str, Exception], BackendError],
        steps: OwnSteps | None = None,
    ) -> None:
        self.vocabulary_size = vocabulary_size
        self.n_beams = n_beams
        self._open_session = open_session  # called when a step needs it
        self._failed = failed
        self._inputs = {entry["name"]: entry for entry in graph["inputs"]}
        self._outputs = {entry["name"]: entry for entry in graph["outputs"]}
        self._caches = [name for name in self._inputs if output_of(name) in self._outputs]
        self._limit = limit
        self._places = Places(n_places)
        fixed = [e for e in graph["inputs"] if e["shape"][:1] == ["P"] and e["name"] != "ancestors"]
        self._sources = SourceArrays(fixed, n_places)
        self._positions = np.zeros(n_places, dtype=np.int64)  # of the next step of each place's source
        self._letters = {"P": n_places, "K": n_beams, "C": RESERVED if limit is None else min(RESERVED, limit)}
        self._ancestors: Ints = np.zeros((n_places, n_beams, self._letters["C"]), dtype=np.int64)
        self._own = np.arange(n_beams)
        self._buffers: dict[str, NDArray[Any]] = {
            name: np.empty(self._shape(self._inputs[name]), self._inputs[name]["dtype"]) for name in self._caches
        }
        self._bindings: dict[Key, tuple[Any, dict[str, Any]]] = {}
        self._makes_steps = steps
        self._own_steps: dict[int, tuple[OwnStep, dict[str, Any]]] = {}  # by B

    @property
    def n_free(self) -> int:
        """Places that sources can still take."""
        return self._places.n_free

    def join(self, values: Mapping[str, NDArray[Any]]) -> Ints:
        """Take in sources. values: what the encoder and cross-KV-init graphs gave of them. Returns their places [B]."""
        places = self._places.take(len(values["source_mask"]))
        if self._sources.put(places, values):
            self._forget()
        self._positions[places] = 0
        return places

    def leave(self, places: Ints) -> None:
        self._places.leave(places)

    def step(self, places: Ints, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        positions = self._positions[places]
        last = int(positions.max())
        if self._limit is not None and last >= self._limit:
            raise self._no_position(last)
        if last >= self._letters["C"]:
            self._make_room(last)
        self._follow(places, positions, parents, last)
        if self._makes_steps is not None and not query.dense and not query.attention:
            return self._step_alone(places, positions, tokens, query)
        n_probes = 0 if query.probe_ids is None else query.probe_ids.shape[2]
        key = (len(places), query.n_candidates, n_probes, query.dense, query.attention)
        binding, buffers = self._bindings.get(key) or self._bind(key)
        buffers["token"][...] = tokens
        buffers["position"][...] = positions
        buffers["places"][...] = places
        if query.probe_ids is not None and n_probes:
            buffers["probe_ids"][...] = query.probe_ids
        try:
            self._open_session().run_with_iobinding(binding)
        except Exception as error:
            raise self._failed("the decoder step", error) from error
        self._positions[places] += 1
        return StepResult(
            candidate_ids=buffers["candidate_ids"],
            candidate_log_probs=buffers["candidate_log_probs"],
            log_normalizer=buffers["log_normalizer"],
            probe_log_probs=buffers["probe_log_probs"] if n_probes else None,
            log_probs=buffers.get("log_probs"),
            attention=buffers.get("attention"),
        )

    def _step_alone(self, places: Ints, positions: Ints, tokens: Ints, query: StepQuery) -> StepResult:
        """A step without ONNX Runtime."""
        if query.n_candidates > self.vocabulary_size:
            raise BackendError(f"{query.n_candidates} candidates wanted of a vocabulary of {self.vocabulary_size}")
        run, buffers = self._own_steps.get(len(places)) or self._make_step(len(places))
        buffers["token"][...] = tokens
        buffers["position"][...] = positions
        buffers["places"][...] = places
        try:
            found = run(query)
        except RuntimeError as error:
            raise self._failed("the decoder step", error) from error
        self._positions[places] += 1
        return found

    def makes_many(self, searches: Sequence[Any]) -> bool:
        """Whether `run` can make the steps of these searches: all are in C++, and want what `_step_alone` gives."""
        return self._makes_steps is not None and all(getattr(search, "is_sparse", False) for search in searches)

    def run(self, searches: Sequence[Any], places: Ints, until: Until) -> tuple[int, list[int]]:
        """Steps for searches that `makes_many`, whose sources have these places [B], one search's after the other's.

        Returns how many were made, and a status for each search, which its `made` takes.
        """
        while True:
            step, buffers = self._own_steps.get(len(places)) or self._make_step(len(places))
            buffers["places"][...] = places
            batch = {**buffers, "positions": self._positions, "ancestors": self._ancestors}
            try:
                made = step.many(searches, batch, self._limit, until)
            except RuntimeError as error:
                raise self._failed("the decoder step", error) from error
            last = int(self._positions[places].max())
            if made.has_no_position and not made.n_steps:
                raise self._no_position(last)
            if not made.needs_room or made.n_steps:
                return made.n_steps, made.statuses
            self._make_room(last)

    def _no_position(self, position: int) -> BackendError:
        return BackendError(f"the decoder has no position {position}: the model's limit is {self._limit} tokens")

    def _make_step(self, n_sources: int) -> tuple[OwnStep, dict[str, Any]]:
        assert self._makes_steps is not None
        letters = {"B": n_sources, "S": self._sources.capacity}
        buffers = {
            name: np.zeros(self._shape(self._inputs[name], **letters), dtype=np.int64)
            for name in ("token", "position", "places")
        }
        given = {
            **self._sources.arrays,
            **self._buffers,
            **buffers,
            "ancestors": self._ancestors,
            "want_log_probs": np.array(False),
            "want_attention": np.array(False),
        }
        caches = {output_of(name): self._buffers[name] for name in self._caches}
        try:
            run = self._makes_steps.new(
                {name: given[name] for name in self._inputs if name in given}, caches, n_sources, self.n_beams
            )
        except RuntimeError as error:
            raise self._failed("the decoder step", error) from error
        self._own_steps[n_sources] = run, buffers
        return run, buffers

    def _forget(self) -> None:
        """Steps that were made of arrays that are others now."""
        self._bindings.clear()
        self._own_steps.clear()

    def _follow(self, places: Ints, positions: Ints, parents: Ints, last: int) -> None:
        """Beam k of each source continues the history of beam parents[b,k] and writes its own slot; see ancestors.py.

        What the table has after a source's position is of no meaning.
        """
        moved = (parents != self._own).any(axis=1) & (positions > 0)
        if moved.any():
            at = places[moved]
            past = self._ancestors[at, :, :last]
            self._ancestors[at, :, :last] = np.take_along_axis(past, parents[moved][:, :, None], axis=1)
        self._ancestors[places, :, positions] = self._own

    def _make_room(self, position: int) -> None:
        before = self._letters["C"]
        wanted = max(position + 1, int(before * GROWTH))
        self._letters["C"] = wanted if self._limit is None else min(wanted, self._limit)
        self._ancestors = np.pad(self._ancestors, ((0, 0), (0, 0), (0, self._letters["C"] - before)))
        for name in self._caches:
            grown = np.empty(self._shape(self._inputs[name]), self._inputs[name]["dtype"])
            grown[:before] = self._buffers[name]
            self._buffers[name] = grown
        self._forget()

    def _shape(self, entry: Mapping[str, Any], **letters: int) -> list[int]:
        known = {**self._letters, **letters}
        return [known[size] if isinstance(size, str) else size for size in entry["shape"]]

    def _bind(self, key: Key) -> tuple[Any, dict[str, Any]]:
        """Bind every input and the wanted outputs for steps of one size; reused until an array is replaced."""
        from onnxruntime import OrtValue

        n_sources, n_candidates, n_probes, dense, attention = key
        if n_candidates > self.vocabulary_size:
            raise BackendError(f"{n_candidates} candidates wanted of a vocabulary of {self.vocabulary_size}")
        letters = {"B": n_sources, "S": self._sources.capacity, "M": n_candidates, "Q": max(1, n_probes)}
        inputs: dict[str, Any] = {
            **self._sources.arrays,
            **self._buffers,
            "ancestors": self._ancestors,
            "n_candidates": np.array([n_candidates], dtype=np.int64),
            "want_log_probs": np.array(dense),
            "want_attention": np.array(attention),
        }
        for name in ("token", "position", "places", "probe_ids"):
            inputs[name] = np.zeros(self._shape(self._inputs[name], **letters), dtype=np.int64)
        binding = self._open_session().io_binding()
        values = {name: OrtValue.ortvalue_from_numpy(inputs[name]) for name in self._inputs}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        buffers: dict[str, Any] = {name: inputs[name] for name in ("token", "position", "places", "probe_ids")}
        wanted = ["candidate_ids", "candidate_log_probs", "log_normalizer", "probe_log_probs"]
        wanted += ["log_probs"] if dense else []
        wanted += ["attention"] if attention and "attention" in self._outputs else []
        for name in wanted:
            entry = self._outputs[name]
            buffers[name] = np.empty(self._shape(entry, **letters), dtype=entry["dtype"])
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(buffers[name]))
        for name in self._caches:
            binding.bind_ortvalue_output(output_of(name), values[name])  # the same memory: updated in place
        buffers["_keep_alive"] = (inputs, values)
        if not dense and not attention:  # whose outputs are large
            if len(self._bindings) >= MOST_BINDINGS:
                self._bindings.clear()
            self._bindings[key] = (binding, buffers)
        return binding, buffers
