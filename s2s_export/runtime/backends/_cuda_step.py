"""ONNX Runtime's decoder step under the search on the device. No graph can hold its launches: the host runs each
step; rules, choice and bookkeeping follow as a graph of their own, and the host reads only the stop flag.

Token, position, ancestors, caches and logits are memory of the search's device, bound to the step by address. Letters:
B sources, K beams, S source length, C positions, N = C*K slots, M candidates, Q probed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ...bundle import output_of
from ..cuda.driver import Buffers, n_bytes
from ..cuda.interface import Device
from ..decoding.options import GenerationOptions
from ..device_search.step_executor import ELEMENTS, attention_at, capacity
from ..sources import Source, SourceKind

BY_THE_LOOP = ("token", "position", "ancestors")


class CudaExecutor:
    """See `StepExecutor`.

    values: what is bound besides addresses; it must live as long as the binding. addresses: of the tensors that search
    and step share, by name. by_the_loop: binds the tensors that the search writes, before each step, since ONNX Runtime
    copies what it needs on the host (it computes sizes there, and the slot of a position) when a tensor is bound.
    """

    def __init__(
        self,
        backend: Any,
        binding: Any,
        by_the_loop: Callable[[], None],
        values: Mapping[str, Any],
        device: Device,
        stream: int,
        addresses: Mapping[str, int],
        letters: Mapping[str, int],
    ) -> None:
        from onnxruntime import RunOptions

        self._options = RunOptions()
        self._options.only_execute_path_to_fetches = True  # leaves out what the host's search asks for
        graph = backend.graphs["decoder_step"]
        logits = next(entry for entry in graph["outputs"] if entry["name"] == "logits")
        self._backend, self._binding, self._values, self._device = backend, binding, values, device
        self._bind_by_the_loop = by_the_loop
        self.n_sources, self.n_beams, self.capacity = letters["B"], letters["K"], letters["C"]
        self.positions, self.capturable = letters["C"], False
        self.vocabulary_size = backend.bundle.vocabulary_size
        self.element = ELEMENTS[logits["dtype"]]
        self.token, self.position = addresses["token"], addresses["position"]
        self.ancestors, self.logits = addresses["ancestors"], addresses["logits"]
        self.attention = None
        if "attention" in addresses:
            self.attention = attention_at(graph, addresses["attention"], letters["S"])
        self.stream = stream
        # All that the search's graph depends on; the step itself is bound anew for each batch.
        self.signature: object = (self.token, self.position, self.ancestors, self.logits, self.attention)

    def enqueue(self, stream: int) -> None:
        self._device.synchronize(self.stream)  # the library runs in a stream of its own, and waits for it
        self._bind_by_the_loop()
        self._backend.run("decoder_step", self._binding, self._options)


class CudaSlot:
    """Buffers and a stream. See `searcher.Slot`. backend: an OnnxRuntimeCudaBackend."""

    def __init__(self, backend: Any, device: Device) -> None:
        self._backend = backend
        self._device = device
        self._stream = device.create_stream()
        self._buffers = Buffers(device, self._stream)

    def begin(
        self, sources: Sequence[Source], options: GenerationOptions, *, graphs: bool, alignments: bool
    ) -> CudaExecutor:
        backend, graph = self._backend, self._backend.graphs["decoder_step"]
        values = backend.encode(sources)
        n_sources, length = values["source_mask"].shape()
        beams, positions = options.n_rows, capacity(options, backend.bundle.max_target_length)
        letters = {"B": n_sources, "S": length, "K": beams, "C": positions, "N": positions * beams, "M": 1, "Q": 1}
        outputs = {entry["name"]: entry for entry in graph["outputs"]}
        binding = backend.sessions["decoder_step"].io_binding()
        addresses: dict[str, int] = {}
        for entry in graph["inputs"]:
            name, carried = entry["name"], output_of(entry["name"])
            if name in BY_THE_LOOP or carried in outputs:
                addresses[name] = self._bind(binding.bind_input, name, entry, letters)
                if carried in outputs:  # in place; zeros, since 0 * NaN of an unwritten slot would still be NaN
                    self._device.zero(addresses[name], n_bytes(_shape(entry, letters), entry["dtype"]), self._stream)
                    self._bind(binding.bind_output, name, entry, letters, carried)
                continue
            if name not in values:
                values[name] = backend.value(_nothing_asked(name, entry, letters))
            binding.bind_ortvalue_input(name, values[name])
        for name in ["logits", *(["attention"] if alignments and "attention" in outputs else [])]:
            addresses[name] = self._bind(binding.bind_output, name, outputs[name], letters)

        def by_the_loop() -> None:
            for entry in graph["inputs"]:
                if entry["name"] in BY_THE_LOOP:
                    self._bind(binding.bind_input, entry["name"], entry, letters)

        return CudaExecutor(backend, binding, by_the_loop, values, self._device, self._stream, addresses, letters)

    def _bind(self, bind: Any, name: str, entry: Any, letters: Mapping[str, int], bound_as: str = "") -> int:
        """Binds the buffer `name` as an input or an output of the step. Returns its address."""
        shape = _shape(entry, letters)
        address = self._buffers.get(name, shape, entry["dtype"])
        bind(bound_as or name, self._backend.device, 0, np.dtype(entry["dtype"]).type, shape, address)
        return address

    def close(self) -> None:
        self._buffers.close()
        self._device.destroy_stream(self._stream)


class CudaSlotFactory:
    """See `searcher.SlotFactory`. ONNX Runtime takes any number of sources."""

    most_sources: int | None = None

    def __init__(self, backend: Any, device: Device) -> None:
        self.device = device
        self.kind: SourceKind = backend.kind
        self._backend = backend

    def shape_of(self, sources: Sequence[Source], options: GenerationOptions) -> Hashable:
        return len(sources), options.n_rows, capacity(options, self._backend.bundle.max_target_length)

    def make(self) -> CudaSlot:
        return CudaSlot(self._backend, self.device)


def _nothing_asked(name: str, entry: Any, letters: Mapping[str, int]) -> Any:
    """Inputs by which the host asks for candidates: one candidate, and token 0 probed."""
    array = np.zeros(_shape(entry, letters), entry["dtype"])
    return array + 1 if name == "n_candidates" else array


def _shape(entry: Any, letters: Mapping[str, int]) -> list[int]:
    return [letters[size] if isinstance(size, str) else int(size) for size in entry["shape"]]
