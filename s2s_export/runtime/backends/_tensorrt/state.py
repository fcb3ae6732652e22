"""A batch being decoded by engines: `DecodeState` over an execution context.

Letters: B sources, K beams, C positions. A step copies to the device the tokens [B,K], the position and, only when
beams changed places, the columns of the ancestor table that exist so far. The logits [B,K,V] come back. Caches and what
was computed once for each source stay on the device.
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
from ...sources import MASK, Source
from . import candidates
from .engines import Engines, ExecutionContext

FED = ("token", "position", "ancestors", "parents")
PREFILL = ("encoder", "cross_kv_init")  # the graphs that run once a batch
# (signature, body): queues what `body` queues. Equal signatures mean equal launches.
Queue = Callable[[object, Callable[[], None]], None]


class EngineState:
    """See `decoding.state.DecodeState`. An engine may have been built for other numbers of beams than the search wants;
    then it runs the next larger number, and the results of the rows beyond are ignored.

    context: what the batch runs on; by default an idle one of the engines, given back when the state is collected.
    queue: queues encoder and cross-KV-init, so that a caller may capture them; by default launch by launch.
    """

    def __init__(
        self,
        engines: Engines,
        sources: list[Source],
        n_beams: int,
        context: ExecutionContext | None = None,
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
        self._context = context or engines.take_context()
        if context is None:
            weakref.finalize(self, engines.return_context, self._context)
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

    def _encode(self, sources: list[Source], queue: Queue) -> None:
        """Queues encoder and cross-KV-init, which write where the decoder step reads, and clears the caches."""
        self._upload(sources)
        for graph in PREFILL:
            described = self._engines.graphs[graph]
            self._bind(graph, described["inputs"])
            for entry in described["outputs"]:
                shape = self._shape(entry)
                self._addresses[entry["name"]] = self._context.buffer(entry["name"], shape, entry["dtype"])
                self._context.set_address(graph, entry["name"], self._addresses[entry["name"]])
        for name in self._caches:
            entry = self._inputs[name]
            self._addresses[name] = self._context.buffer(name, self._shape(entry), entry["dtype"])
        self._queue_prefill = functools.partial(queue, self.signature, self._launch_prefill)
        self._queue_prefill()

    def restart(self, sources: list[Source]) -> None:
        """Encodes other sources, as many and of the same bucket, into the same buffers. For a search that writes token,
        position and ancestors itself."""
        self._device.activate()
        self._upload(sources)
        self._queue_prefill()

    def _upload(self, sources: list[Source]) -> None:
        context = self._context
        fed = self._engines.kind.prepare(sources)
        self._letters["S"] = bucket(self._engines.record, fed[MASK].shape[1])
        for name, array in fed.items():
            if (entry := self._engines.inputs.get(name)) is None:
                continue
            shape = self._shape(entry)
            staged = context.staging(name, shape, entry["dtype"])
            staged[...] = 0  # behind the batch's longest source, up to the bucket
            staged[tuple(slice(size) for size in array.shape)] = array
            self._addresses[name] = context.buffer(name, shape, entry["dtype"])
            context.upload(self._addresses[name], staged)

    def _launch_prefill(self) -> None:
        for name in self._caches:
            # Zeros: a slot that was never written is masked, and 0 * NaN would still be NaN.
            size = n_bytes(self._shape(self._inputs[name]), self._inputs[name]["dtype"])
            self._context.device.zero(self._addresses[name], size, self._context.stream)
        for graph in PREFILL:
            self._context.launch(graph)

    @property
    def signature(self) -> object:
        """Equal for states that make the same launches: buffers may move, and shapes follow the batch and its
        bucket."""
        return tuple(sorted(self._addresses.items())), tuple(sorted(self._letters.items()))

    def _begin(self) -> None:
        context = self._context
        self._fixed = [n for n in self._inputs if n in self._addresses and n not in self._carried]
        for name in self._states:
            self._spread(name)
        for name, entry in self._inputs.items():
            if name in FED:
                self._addresses[name] = context.buffer(name, self._shape(entry), entry["dtype"])
        if "ancestors" in self._inputs:
            # Every beam continues itself at first. Entries of later positions are not read: those positions are masked.
            self._ancestors = AncestorTable(self._staged_ancestors())
            context.upload(self._addresses["ancestors"], self._ancestors.array)
        self._bind_step()

    def _spread(self, name: str) -> None:
        """A recurrent decoder's first state [B,U] -> [B,K,U]: every beam starts from its source's."""
        entry, context = self._inputs[name], self._context
        made = next(e for e in self._engines.graphs["cross_kv_init"]["outputs"] if e["name"] == name)
        first = context.staging(f"{name}/first", self._shape(made), made["dtype"])
        context.device.to_host(first, self._addresses[name], context.stream)
        context.device.synchronize(context.stream)
        shape = self._shape(entry)
        spread = context.staging(name, shape, entry["dtype"])
        spread[...] = first[:, None]
        self._addresses[name] = context.buffer(f"{name}/beams", shape, entry["dtype"])
        context.upload(self._addresses[name], spread)

    def _bind_step(self) -> None:
        """Sets shapes and addresses of the step. They stay until sources leave the batch."""
        context = self._context
        self._bind("decoder_step", self._inputs.values())
        in_place = {output_of(name): name for name in self._caches}
        for name, entry in self._outputs.items():
            if name in in_place:
                self._addresses[name] = self._addresses[in_place[name]]
            else:
                self._addresses[name] = context.buffer(name, self._shape(entry), entry["dtype"])
        for name in self._outputs:
            context.set_address("decoder_step", name, self._addresses[name])

    def _bind(self, graph: str, entries: Any) -> None:
        self._context.set_shapes(graph, {e["name"]: self._shape(e) for e in entries if _is_dynamic(e)})
        for entry in entries:
            self._context.set_address(graph, entry["name"], self._addresses[entry["name"]])

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
        context = self._context
        self._feed(tokens, parents)
        context.launch("decoder_step")
        logits = self._fetch("logits")
        attention = self._fetch("attention") if query.attention else None
        context.device.synchronize(context.stream)
        self._exchange_states()
        self._t += 1
        shown = None if attention is None else attention[:, : self.n_beams, ..., :]
        return candidates.look(logits[:, : self.n_beams], query, shown)

    def _feed(self, tokens: Ints, parents: Ints) -> None:
        context, t = self._context, self._t
        token = context.staging("token", (self.n_sources, self._rows), np.int64)
        token[:, : self.n_beams] = tokens
        token[:, self.n_beams :] = tokens[:, :1]
        context.upload(self._addresses["token"], token)
        if "position" in self._inputs:
            position = context.staging("position", (1,), np.int64)
            position[0] = t
            context.upload(self._addresses["position"], position)
        if "parents" in self._inputs:
            chosen = context.staging("parents", (self.n_sources, self._rows), np.int64)
            chosen[...] = np.arange(self._rows)
            chosen[:, : self.n_beams] = parents if t else 0
            context.upload(self._addresses["parents"], chosen)
        if self._ancestors is not None and self._ancestors.follow(parents):
            table = self._ancestors.array.reshape(-1, self._ancestors.capacity)
            context.device.columns_to_device(self._addresses["ancestors"], table, t, context.stream)

    def _staged_ancestors(self) -> Any:
        return self._context.staging("ancestors", (self.n_sources, self._rows, self._letters["C"]), np.int64)

    def _fetch(self, name: str) -> Any:
        entry = self._outputs[name]
        array = self._context.staging(f"{name}/host", self._shape(entry), entry["dtype"])
        self._context.device.to_host(array, self._addresses[name], self._context.stream)
        return array

    def _exchange_states(self) -> None:
        """A recurrent decoder's states are read from one buffer and written to another; the two change places."""
        for name in self._states:
            out = output_of(name)
            self._addresses[name], self._addresses[out] = self._addresses[out], self._addresses[name]
            for which in (name, out):
                self._context.set_address("decoder_step", which, self._addresses[which])

    def keep(self, sources: Ints) -> None:
        """Goes on with these sources only. They move to the front of their buffers, in ascending order, so that none is
        overwritten before it has moved."""
        self._device.activate()
        context = self._context
        for name in [*self._fixed, *self._carried]:
            entry = self._inputs[name]
            size = n_bytes(self._shape(entry)[1:], entry["dtype"])
            for target, source in enumerate(sources.tolist()):
                if target != source:
                    address = self._addresses[name]
                    context.device.move(address + target * size, address + source * size, size, context.stream)
        self.n_sources = self._letters["B"] = len(sources)
        if self._ancestors is not None:
            self._ancestors.keep(sources, self._staged_ancestors())
            context.upload(self._addresses["ancestors"], self._ancestors.array)
        states = {name: (self._addresses[name], self._addresses[output_of(name)]) for name in self._states}
        self._bind_step()
        for name, (read, written) in states.items():
            self._addresses[name], self._addresses[output_of(name)] = read, written
            for which in (name, output_of(name)):
                context.set_address("decoder_step", which, self._addresses[which])

    def _shape(self, entry: Any) -> list[int]:
        return [self._letters[size] if isinstance(size, str) else int(size) for size in entry["shape"]]


def _is_dynamic(entry: Any) -> bool:
    return any(isinstance(size, str) for size in entry["shape"])
