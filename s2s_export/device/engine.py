"""TensorRT's decoder step as a `StepExecutor`, and the whole of a decode on a device with it.

The state encodes the sources, holds the caches and has every address set when it is made; here only its last graph is
queued. Recurrent decoders exchange their states' buffers at each step, which a captured graph can't: they are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..decoding.hypothesis import Hypothesis
from ..decoding.options import GenerationOptions
from ..errors import BackendError
from ..tensorrt.state import EngineState
from .interface import Device, StepExecutor
from .loop import DeviceSearch, Mode

ELEMENTS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class EngineExecutor:
    """state: fresh, before its first step; it belongs to the executor from then on."""

    def __init__(self, state: EngineState) -> None:
        inputs, addresses = state._inputs, state._addresses
        if "ancestors" not in inputs:
            raise BackendError(
                "this model's decoder has states and no caches; expected a transformer for the search on the device; "
                "decode with the host's search"
            )
        self._state = state
        self._lane = state._lane
        self.n_sources = state.n_sources
        self.n_beams = state._rows
        self.vocabulary_size = state.vocabulary_size
        self.capacity = int(state._letters["C"])
        self.element = ELEMENTS[str(state._outputs["logits"]["dtype"])]
        self.token = addresses["token"]
        self.position = addresses["position"]
        self.ancestors = addresses["ancestors"]
        self.logits = addresses["logits"]
        self.stream = self._lane.stream
        # Buffers grow and move, and shapes follow the source length's bucket: a graph is good for one set of them.
        self.signature: object = (
            id(self._lane),
            tuple(sorted(addresses.items())),
            tuple(sorted(state._letters.items())),
        )

    def enqueue(self, stream: int) -> None:
        self._lane.launch("decoder_step")


class EngineSearch:
    """Batches one after another, on the memory and graphs of the last one where they fit. Not shared between threads.

    begin: a backend's. The state of a batch is let go before the next begins, so that its lane is the next one's.
    """

    def __init__(self, device: Device, begin: Callable[[Sequence[Sequence[int]], int], Any]) -> None:
        self._device = device
        self._begin = begin
        self._search: DeviceSearch | None = None

    def decode(
        self, sources: Sequence[Sequence[int]], options: GenerationOptions, *, mode: Mode = "auto", **given: Any
    ) -> list[list[Hypothesis]]:
        """As `decode` below."""
        if self._search is not None:
            self._search.use(_Gone(self._search.executor))
        executor = EngineExecutor(self._begin(sources, options.n_rows))
        if self._search is None:
            self._search = DeviceSearch(self._device, executor)
        else:
            self._search.use(executor)
        return self._search.run(sources, options, mode=mode, **given)

    def close(self) -> None:
        if self._search is not None:
            self._search.close()


class _Gone:
    """In an executor's place between two batches: its numbers without its state, whose lane is free again."""

    def __init__(self, executor: StepExecutor) -> None:
        self.n_sources, self.n_beams = executor.n_sources, executor.n_beams
        self.vocabulary_size, self.capacity = executor.vocabulary_size, executor.capacity
        self.element, self.stream, self.signature = executor.element, executor.stream, executor.signature
        self.token, self.position = executor.token, executor.position
        self.ancestors, self.logits = executor.ancestors, executor.logits

    def enqueue(self, stream: int) -> None:
        raise BackendError("a step of a batch that is over was queued; expected none; this is a defect, report it")


def decode(
    device: Device,
    begin: Callable[[Sequence[Sequence[int]], int], Any],
    sources: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    mode: Mode = "auto",
    on_prefix: Callable[[int, list[int]], None] | None = None,
    source_numbers: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """As `decoding.decode`, with the search on the device. begin: a backend's, which encodes sources for some beams.

    A batch makes its own graphs here; `EngineSearch` keeps them.
    """
    search = DeviceSearch(device, EngineExecutor(begin(sources, options.n_rows)))
    try:
        return search.run(sources, options, mode=mode, on_prefix=on_prefix, source_numbers=source_numbers)
    finally:
        search.close()
