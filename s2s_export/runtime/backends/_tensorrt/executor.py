"""TensorRT's decoder step as a `StepExecutor`, and the slots in which a device decodes with it.

An `EngineState` encodes the sources, holds the caches and sets every address when it is made; here its graphs are only
queued. Recurrent decoders are refused: they exchange their states' buffers at each step, which a captured graph can't.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from ....engines import beams_for, bucket
from ....errors import BackendError
from ...cuda.faults import DeviceLost
from ...cuda.interface import Device, Graph
from ...decoding.options import GenerationOptions
from ...device_search.narrow import NarrowExecutor
from ...device_search.search_buffers import not_captured
from ...device_search.step_executor import ELEMENTS, StepExecutor, attention_at, incompatible_reason
from ...sources import Source, SourceKind
from .engines import Engines, ExecutionContext
from .state import PREFILL, EngineState


class EngineExecutor:
    """The decoder step of a batch. state: before its first step; the executor owns it from then on."""

    def __init__(self, state: EngineState) -> None:
        graph, addresses = state._engines.graphs["decoder_step"], state._addresses
        if (reason := incompatible_reason(graph)) is not None:
            raise BackendError(f"{reason}; decode with the host's search (search='host')")
        self._state = state
        self._context = state._context
        self.n_sources = state.n_sources
        self.n_beams = state._rows
        self.vocabulary_size = state.vocabulary_size
        self.capacity = int(state._letters["C"])
        self.positions, self.capturable = state._limit, True
        self.element = ELEMENTS[str(state._outputs["logits"]["dtype"])]
        self.token = addresses["token"]
        self.position = addresses["position"]
        self.ancestors = addresses["ancestors"]
        self.logits = addresses["logits"]
        self.attention = attention_at(graph, addresses.get("attention", 0), int(state._letters["S"]))
        self.stream = self._context.stream
        self.signature: object = (id(self._context), state.signature)

    def enqueue(self, stream: int) -> None:
        self._context.launch("decoder_step")


def require_capturable(context: ExecutionContext, graphs: Sequence[str]) -> None:
    """Raises BackendError where the library says beforehand that launches of these graphs can't be captured."""
    if (reason := context.refused_capture(graphs)) is not None:
        raise not_captured(BackendError(reason), "device-queue")


class PrefillGraph:
    """Encoder and cross-KV-init as one CUDA graph.

    The first call with a signature is queued launch by launch, since libraries set themselves up in their first call,
    and then captured. Later calls with it launch the graph.
    """

    def __init__(self, device: Device, context: ExecutionContext) -> None:
        self._device = device
        self._context = context
        self._stream = context.stream
        self._signature: object = None
        self._graph: Graph | None = None

    def queue(self, signature: object, body: Callable[[], None]) -> None:
        """Queues what `body` queues. signature: equal where its launches are."""
        if self._graph is not None and signature == self._signature:
            self._graph.launch(self._stream)
            return
        self.close()
        body()
        self._device.synchronize(self._stream)
        require_capturable(self._context, PREFILL)
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


class EngineSlot:
    """An execution context, and the graph of what it runs once for each batch. See `searcher.Slot`.

    A batch of the same shape as the last one uses its state again, so that no address is set anew.
    """

    def __init__(self, engines: Engines, device: Device) -> None:
        self._engines = engines
        self._device = device
        self._context = ExecutionContext(engines)
        self._prefill = PrefillGraph(device, self._context)
        self._shape: Hashable = None
        self._last: tuple[EngineState, StepExecutor] | None = None

    def begin(
        self, sources: Sequence[Source], options: GenerationOptions, *, graphs: bool, alignments: bool
    ) -> StepExecutor:
        batch = list(sources)
        longest = max(map(self._engines.kind.length, batch))
        shape = len(batch), options.n_rows, bucket(self._engines.record, longest)
        if self._last is None or shape != self._shape:
            self._last = None  # if this fails, the buffers may have moved already
            self._last, self._shape = self._make(batch, options.n_rows, graphs), shape
        else:
            self._last[0].restart(batch)
        return self._last[1]

    def _make(self, batch: list[Source], n_beams: int, graphs: bool) -> tuple[EngineState, StepExecutor]:
        queue = {"queue": self._prefill.queue} if graphs else {}
        state = EngineState(self._engines, batch, n_beams, self._context, **queue)
        executor = EngineExecutor(state)
        if graphs:
            require_capturable(self._context, ["decoder_step"])
        if executor.n_beams == n_beams:
            return state, executor
        return state, NarrowExecutor(executor, n_beams, self._device, self._context.buffer)

    def close(self) -> None:
        self._last = None
        self._prefill.close()
        self._context.close()


class EngineSlotFactory:
    """See `searcher.SlotFactory`."""

    def __init__(self, engines: Engines, device: Device) -> None:
        self.device = device
        self.kind: SourceKind = engines.kind
        self.most_sources: int | None = int(engines.record["ranges"]["B"]["max"])
        self._engines = engines

    def shape_of(self, sources: Sequence[Source], options: GenerationOptions) -> Hashable:
        """Batches of one shape have equal launches: sources, beams that the engine runs, and the bucket."""
        record = self._engines.record
        longest = max(map(self.kind.length, sources))
        return len(sources), beams_for(record, options.n_rows), bucket(record, longest)

    def make(self) -> EngineSlot:
        return EngineSlot(self._engines, self.device)
