"""A batch being decoded by engines: `DecodeState` over a lane.

In a step go to the device: the tokens [B,K], the position, and, only when beams changed places, the columns of the
ancestor table that exist so far. Back come the logits. Caches and what was computed once per source never leave it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....bundle import output_of
from ....engines import beams_for, bucket
from ....errors import BackendError
from ...cuda.driver import n_bytes
from ...decoding.ancestors import AncestorTable
from ...decoding.state import NO_ATTENTION, Ints, StepQuery, StepResult
from .._sources import pad_sources
from . import candidates
from .engines import Engines, Lane

FED = ("token", "position", "ancestors", "parents")
FRONT = ("encoder", "cross_kv_init")  # what runs once a batch
Queue = Callable[[object, Callable[[], None]], None]  # queues what a function queues; the same for equal objects


class EngineState:
    """See `decoding.state.DecodeState`. An engine may have been built for other numbers of beams than the search wants;
    then it runs the next larger one, whose last rows nobody reads.

    lane: the caller's; by default one that is given back with the state. queue: how encoder and cross-KV-init are
    queued, so that a caller may capture them; by default launch by launch.
    """

    def __init__(
        self,
        engines: Engines,
        sources: list[list[int]],
        n_beams: int,
        lane: Lane | None = None,
        queue: Queue = lambda signature, body: body(),
    ) -> None:
        self.vocabulary_size = engines.bundle.vocabulary_size
        self.n_sources = len(sources)
        self.n_beams = n_beams
        self._engines = engines
        self._device = engines.device
        self._device.activate()
        self._limit = int(engines.record["target_length"])
        self._t = 0
        self._rows = beams_for(engines.record, n_beams)
        self._lane = lane or engines.take_lane()
        if lane is None:
            weakref.finalize(self, engines.return_lane, self._lane)
        graph = engines.graphs["decoder_step"]
        self._inputs: Mapping[str, Any] = {entry["name"]: entry for entry in graph["inputs"]}
        self._outputs: Mapping[str, Any] = {entry["name"]: entry for entry in graph["outputs"]}
        self._carried = [name for name in self._inputs if output_of(name) in self._outputs]
        self._states = [name for name in self._carried if "K" in self._inputs[name]["shape"]]
        self._caches = [name for name in self._carried if name not in self._states]
        self._fixed: list[str] = []  # computed once per source
        slots = int(engines.record["slots"])
        self._letters = {"B": self.n_sources, "K": self._rows, "N": slots, "C": slots // self._rows if slots else 1}
        self._addresses: dict[str, int] = {}
        self._ancestors: AncestorTable | None = None
        self._encode(sources, queue)
        self._begin()

    # Before the first step

    def _encode(self, sources: list[list[int]], queue: Queue) -> None:
        """Empty caches, encoder and cross-KV-init, queued; the last writes where the decoder step reads."""
        self._upload(sources)
        for graph in FRONT:
            described = self._engines.graphs[graph]
            self._bind(graph, described["inputs"])
            for entry in described["outputs"]:
                shape = self._shape(entry)
                self._addresses[entry["name"]] = self._lane.buffer(entry["name"], shape, entry["dtype"])
                self._lane.set_address(graph, entry["name"], self._addresses[entry["name"]])
        for name in self._caches:
            entry = self._inputs[name]
            self._addresses[name] = self._lane.buffer(name, self._shape(entry), entry["dtype"])
        self._queue_front = functools.partial(queue, self.signature, self._launch_front)
        self._queue_front()

    def restart(self, sources: list[list[int]]) -> None:
        """Other sources, as many and of the same bucket, encoded where the last ones were. For a search that writes
        token, position and ancestors itself."""
        self._device.activate()
        self._upload(sources)
        self._queue_front()

    def _upload(self, sources: list[list[int]]) -> None:
        lane = self._lane
        ids, mask = pad_sources(sources, self._engines.bundle.manifest["source"])
        length = bucket(self._engines.record, ids.shape[1])
        self._letters["S"] = length
        fed = {"input_ids": ids, "source_mask": mask}
        for name, array in fed.items():
            staged = lane.staging(name, (self.n_sources, length), np.int64)
            staged[...] = 0
            staged[:, : array.shape[1]] = array
            self._addresses[name] = lane.buffer(name, staged.shape, "int64")
            lane.upload(self._addresses[name], staged)

    def _launch_front(self) -> None:
        for name in self._caches:
            # Zeros: a slot that was never written is masked, and 0 * NaN would still be NaN.
            size = n_bytes(self._shape(self._inputs[name]), self._inputs[name]["dtype"])
            self._lane.device.zero(self._addresses[name], size, self._lane.stream)
        for graph in FRONT:
            self._lane.launch(graph)

    @property
    def signature(self) -> object:
        """Equal where launches are: buffers grow and move, and shapes follow the batch and the source's bucket."""
        return tuple(sorted(self._addresses.items())), tuple(sorted(self._letters.items()))

    def _begin(self) -> None:
        lane = self._lane
        self._fixed = [n for n in self._inputs if n in self._addresses and n not in self._carried]
        for name in self._states:
            self._spread(name)
        for name, entry in self._inputs.items():
            if name in FED:
                self._addresses[name] = lane.buffer(name, self._shape(entry), entry["dtype"])
        if "ancestors" in self._inputs:
            # Every beam continues itself until told otherwise; later positions are masked whatever they say.
            self._ancestors = AncestorTable(self._staged_ancestors())
            lane.upload(self._addresses["ancestors"], self._ancestors.array)
        self._bind_step()

    def _spread(self, name: str) -> None:
        """A recurrent decoder's first state [B,U] -> [B,K,U]: every beam starts from its source's."""
        entry, lane = self._inputs[name], self._lane
        made = next(e for e in self._engines.graphs["cross_kv_init"]["outputs"] if e["name"] == name)
        first = lane.staging(f"{name}/first", self._shape(made), made["dtype"])
        lane.device.to_host(first, self._addresses[name], lane.stream)
        lane.device.synchronize(lane.stream)
        shape = self._shape(entry)
        spread = lane.staging(name, shape, entry["dtype"])
        spread[...] = first[:, None]
        self._addresses[name] = lane.buffer(f"{name}/beams", shape, entry["dtype"])
        lane.upload(self._addresses[name], spread)

    def _bind_step(self) -> None:
        """Shapes and addresses of the step. They stay until sources leave the batch."""
        lane = self._lane
        self._bind("decoder_step", self._inputs.values())
        in_place = {output_of(name): name for name in self._caches}
        for name, entry in self._outputs.items():
            if name in in_place:
                self._addresses[name] = self._addresses[in_place[name]]
            else:
                self._addresses[name] = lane.buffer(name, self._shape(entry), entry["dtype"])
        for name in self._outputs:
            lane.set_address("decoder_step", name, self._addresses[name])

    def _bind(self, graph: str, entries: Any) -> None:
        self._lane.set_shapes(graph, {e["name"]: self._shape(e) for e in entries if _is_dynamic(e)})
        for entry in entries:
            self._lane.set_address(graph, entry["name"], self._addresses[entry["name"]])

    # Steps

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        if self._t >= self._limit:
            raise BackendError(
                f"the engine has no position {self._t}: it was built for {self._limit} tokens; "
                "raise ranges.T in its recipe and build it again"
            )
        if query.attention and "attention" not in self._outputs:
            raise BackendError(NO_ATTENTION)
        self._device.activate()
        lane = self._lane
        self._feed(tokens, parents)
        lane.launch("decoder_step")
        logits = self._fetch("logits")
        attention = self._fetch("attention") if query.attention else None
        lane.device.synchronize(lane.stream)
        self._exchange_states()
        self._t += 1
        shown = None if attention is None else attention[:, : self.n_beams, ..., :]
        return candidates.look(logits[:, : self.n_beams], query, shown)

    def _feed(self, tokens: Ints, parents: Ints) -> None:
        lane, t = self._lane, self._t
        token = lane.staging("token", (self.n_sources, self._rows), np.int64)
        token[:, : self.n_beams] = tokens
        token[:, self.n_beams :] = tokens[:, :1]
        lane.upload(self._addresses["token"], token)
        if "position" in self._inputs:
            position = lane.staging("position", (1,), np.int64)
            position[0] = t
            lane.upload(self._addresses["position"], position)
        if "parents" in self._inputs:
            chosen = lane.staging("parents", (self.n_sources, self._rows), np.int64)
            chosen[...] = np.arange(self._rows)
            chosen[:, : self.n_beams] = parents if t else 0
            lane.upload(self._addresses["parents"], chosen)
        if self._ancestors is not None and self._ancestors.follow(parents):
            table = self._ancestors.array.reshape(-1, self._ancestors.capacity)
            lane.device.columns_to_device(self._addresses["ancestors"], table, t, lane.stream)

    def _staged_ancestors(self) -> Any:
        return self._lane.staging("ancestors", (self.n_sources, self._rows, self._letters["C"]), np.int64)

    def _fetch(self, name: str) -> Any:
        entry = self._outputs[name]
        array = self._lane.staging(f"{name}/host", self._shape(entry), entry["dtype"])
        self._lane.device.to_host(array, self._addresses[name], self._lane.stream)
        return array

    def _exchange_states(self) -> None:
        """States of a recurrent decoder are read from one buffer and written to another, in turn."""
        for name in self._states:
            out = output_of(name)
            self._addresses[name], self._addresses[out] = self._addresses[out], self._addresses[name]
            for which in (name, out):
                self._lane.set_address("decoder_step", which, self._addresses[which])

    def keep(self, sources: Ints) -> None:
        """Sources move forward in their buffers. They are in ascending order: none is overwritten before it moved."""
        self._device.activate()
        lane = self._lane
        for name in [*self._fixed, *self._carried]:
            entry = self._inputs[name]
            size = n_bytes(self._shape(entry)[1:], entry["dtype"])
            for target, source in enumerate(sources.tolist()):
                if target != source:
                    address = self._addresses[name]
                    lane.device.move(address + target * size, address + source * size, size, lane.stream)
        self.n_sources = self._letters["B"] = len(sources)
        if self._ancestors is not None:
            self._ancestors.keep(sources, self._staged_ancestors())
            lane.upload(self._addresses["ancestors"], self._ancestors.array)
        states = {name: (self._addresses[name], self._addresses[output_of(name)]) for name in self._states}
        self._bind_step()
        for name, (read, written) in states.items():
            self._addresses[name], self._addresses[output_of(name)] = read, written
            for which in (name, output_of(name)):
                lane.set_address("decoder_step", which, self._addresses[which])

    def _shape(self, entry: Any) -> list[int]:
        return [self._letters[size] if isinstance(size, str) else int(size) for size in entry["shape"]]


def _is_dynamic(entry: Any) -> bool:
    return any(isinstance(size, str) for size in entry["shape"])
