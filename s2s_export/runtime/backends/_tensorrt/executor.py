"""TensorRT's decoder step as a `StepExecutor`, and the places in which a device decodes with it.

The state encodes the sources, holds the caches and has every address set when it is made; here only its graphs are
queued. Recurrent decoders exchange their states' buffers at each step, which a captured graph can't: they are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from ....engines import beams_for, bucket
from ....errors import BackendError
from ...cuda.faults import DeviceLost
from ...cuda.interface import Device, Graph
from ...decoding.options import GenerationOptions
from ...device_search.held import not_captured
from ...device_search.narrow import NarrowExecutor
from ...device_search.step_executor import ELEMENTS, StepExecutor, attention_at, unfit
from .engines import Engines, Lane
from .state import EngineState


class EngineExecutor:
    """state: fresh, before its first step; it belongs to the executor from then on."""

    def __init__(self, state: EngineState) -> None:
        graph, addresses = state._engines.graphs["decoder_step"], state._addresses
        if (reason := unfit(graph)) is not None:
            raise BackendError(f"{reason}; decode with the host's search (search='host')")
        self._state = state
        self._lane = state._lane
        self.n_sources = state.n_sources
        self.n_beams = state._rows
        self.vocabulary_size = state.vocabulary_size
        self.capacity = int(state._letters["C"])
        self.positions = state._limit
        self.element = ELEMENTS[str(state._outputs["logits"]["dtype"])]
        self.token = addresses["token"]
        self.position = addresses["position"]
        self.ancestors = addresses["ancestors"]
        self.logits = addresses["logits"]
        self.attention = attention_at(graph, addresses.get("attention", 0), int(state._letters["S"]))
        self.stream = self._lane.stream
        self.signature: object = (id(self._lane), state.signature)

    def enqueue(self, stream: int) -> None:
        self._lane.launch("decoder_step")


class Front:
    """Encoder and cross-KV-init as one graph. The first call with a signature is queued, since libraries set themselves
    up in it, and then captured; later ones are replayed."""

    def __init__(self, device: Device, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._signature: object = None
        self._graph: Graph | None = None

    def queue(self, signature: object, body: Callable[[], None]) -> None:
        if self._graph is not None and signature == self._signature:
            self._graph.launch(self._stream)
            return
        self.close()
        body()
        self._device.synchronize(self._stream)
        try:
            self._graph, self._signature = self._device.capture(self._stream, body), signature
        except DeviceLost:
            raise
        except BackendError as error:
            raise not_captured(error, "device-queue") from error

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None


class EnginePlace:
    """A lane, and the graph of what runs on it once a batch. See `searcher.Place`.

    A batch of the last one's shape takes its state over: nothing is bound again.
    """

    def __init__(self, engines: Engines, device: Device) -> None:
        self._engines = engines
        self._device = device
        self._lane = Lane(engines)
        self._front = Front(device, self._lane.stream)
        self._shape: Hashable = None
        self._last: tuple[EngineState, StepExecutor] | None = None

    def begin(
        self, sources: Sequence[Sequence[int]], options: GenerationOptions, *, graphs: bool, alignments: bool
    ) -> StepExecutor:
        batch = [list(source) for source in sources]
        shape = len(batch), options.n_rows, bucket(self._engines.record, max(map(len, batch)))
        if self._last is None or shape != self._shape:
            self._last = None  # whatever goes wrong now, its buffers may have moved
            self._last, self._shape = self._make(batch, options.n_rows, graphs), shape
        else:
            self._last[0].restart(batch)
        return self._last[1]

    def _make(self, batch: list[list[int]], n_beams: int, graphs: bool) -> tuple[EngineState, StepExecutor]:
        queue = {"queue": self._front.queue} if graphs else {}
        state = EngineState(self._engines, batch, n_beams, self._lane, **queue)
        executor = EngineExecutor(state)
        if executor.n_beams == n_beams:
            return state, executor
        return state, NarrowExecutor(executor, n_beams, self._device, self._lane.buffer)

    def close(self) -> None:
        self._last = None
        self._front.close()
        self._lane.close()


class EnginePlaces:
    """See `searcher.Places`."""

    def __init__(self, engines: Engines, device: Device) -> None:
        self.device = device
        self.most_sources: int | None = int(engines.record["ranges"]["B"]["max"])
        self._engines = engines

    def shape_of(self, sources: Sequence[Sequence[int]], options: GenerationOptions) -> Hashable:
        """Batches of one shape have equal launches: sources, beams that the engine runs, and the bucket."""
        record = self._engines.record
        return len(sources), beams_for(record, options.n_rows), bucket(record, max(map(len, sources)))

    def make(self) -> EnginePlace:
        return EnginePlace(self._engines, self.device)
