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
from .interface import Device
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

    def enqueue(self, stream: int) -> None:
        self._lane.launch("decoder_step")


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

    A batch makes its own graphs here; what serves many batches keeps an executor and a `DeviceSearch`.
    """
    search = DeviceSearch(device, EngineExecutor(begin(sources, options.n_rows)))
    try:
        return search.run(sources, options, mode=mode, on_prefix=on_prefix, source_numbers=source_numbers)
    finally:
        search.close()
