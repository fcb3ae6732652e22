"""The decoder's step through PyTorch under the search on the device: for measuring and tests, wherever torch runs.

The portable decoder step is run operator by operator on torch's own memory, so that the search, its rules, streams and
graphs can be tested with a real decoder on any machine that has torch and a GPU, with or without TensorRT. On a GPU the
step is captured into graphs like an engine's. Letters: B sources, K beams, S source length, C positions, N = C*K slots.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from ...bundle import Bundle, output_of
from ..cuda.interface import Device
from ..decoding.options import GenerationOptions
from ..device_search.loop import Mode
from ..device_search.searcher import DeviceSearcher
from ..device_search.step_executor import Attention, attention_at, capacity, incompatible_reason
from ..sources import Source, SourceKind
from ._torch_graph import StaticTorchGraph
from .torch import TorchBackend

ELEMENTS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class TorchDeviceBackend(TorchBackend):
    """The backend `torch` with its search on a device.

    search_device: CudaDevice with device "cuda", HostDevice with "cpu". element: what the step's weights and caches are
    in, torch.float32 by default.
    """

    def __init__(
        self, bundle: Bundle, search_device: Device, device: str = "cuda", element: torch.dtype | None = None
    ) -> None:
        super().__init__(bundle, torch.device(device))
        self.search_device: Any = search_device
        self.steps = StaticTorchGraph(bundle.graph_path("decoder_step"), self.device, element)

    def lacks_device_search(self) -> str | None:
        return incompatible_reason(self.bundle.manifest["graphs"]["decoder_step"])

    def device_search(self, mode: Mode) -> DeviceSearcher:
        return DeviceSearcher(TorchSlotFactory(self), mode)


class TorchExecutor:
    """See `StepExecutor`. Its tensors are torch's; the search is given their addresses."""

    def __init__(self, backend: TorchDeviceBackend, stream: int, letters: Mapping[str, int], attention: bool) -> None:
        graph = backend.bundle.manifest["graphs"]["decoder_step"]
        self._backend, self._letters = backend, letters
        self.n_sources, self.n_beams, self.capacity = letters["B"], letters["K"], letters["C"]
        self.positions, self.capturable = letters["C"], True
        self.vocabulary_size = backend.bundle.vocabulary_size
        self.stream = stream
        self._in_stream = _in_stream(backend.device, stream)
        self._inputs: dict[str, Any] = {}
        outputs = {entry["name"] for entry in graph["outputs"]}
        self._caches = [e["name"] for e in graph["inputs"] if output_of(e["name"]) in outputs]
        with self._in_stream():
            for entry in graph["inputs"]:
                shape = [letters[size] if isinstance(size, str) else int(size) for size in entry["shape"]]
                kind = torch.int64 if entry["dtype"] == "int64" else backend.steps.element
                self._inputs[entry["name"]] = torch.zeros(shape, dtype=kind, device=backend.device)
            in_place = {name: output_of(name) for name in self._caches}
            wanted = ["logits", *(["attention"] if attention else [])]
            self._step = backend.steps.bind(self._inputs, in_place, wanted)
            self._written = {name: torch.empty_like(value).contiguous() for name, value in self._step().items()}
        self.token, self.position, self.ancestors = (
            self._inputs[name].data_ptr() for name in ("token", "position", "ancestors")
        )
        self.logits = self._written["logits"].data_ptr()
        self.element = ELEMENTS[self._written["logits"].dtype]
        self.attention: Attention | None = None
        if attention:
            at = attention_at(graph, self._written["attention"].data_ptr(), letters["S"])
            assert at is not None
            self.attention = replace(at, element=ELEMENTS[self._written["attention"].dtype])
        self.signature: object = id(self)

    def restart(self, values: Mapping[str, Any]) -> None:
        """Begins another batch of the same shape. values: what encoder and cross-KV-init gave for it, by name."""
        with self._in_stream():
            for name, tensor in self._inputs.items():
                if name in values:
                    tensor.copy_(values[name])
                elif name in self._caches:
                    tensor.zero_()  # 0 * NaN of an unwritten slot would still be NaN

    def enqueue(self, stream: int) -> None:
        if self._backend.device.type == "cpu":
            self._backend.search_device.call(self._run)
        else:
            self._run()

    def _run(self) -> None:
        with self._in_stream():
            for name, value in self._step().items():
                self._written[name].copy_(value)


def _in_stream(device: torch.device, stream: int) -> Callable[[], AbstractContextManager[Any]]:
    """Makes torch queue into `stream`, with memory that no other work is given, as graphs write into it later."""
    if device.type == "cpu":
        return nullcontext
    external = torch.cuda.ExternalStream(stream, device=device)  # type: ignore[no-untyped-call]
    memory = torch.cuda.MemPool()

    @contextmanager
    def entered() -> Iterator[None]:
        with torch.cuda.stream(external), torch.cuda.use_mem_pool(memory):
            yield

    return entered


class TorchSlot:
    """See `searcher.Slot`. A batch of the same shape as the last one uses its executor again."""

    def __init__(self, backend: TorchDeviceBackend) -> None:
        self._backend = backend
        self._stream = backend.search_device.create_stream()
        self._last: tuple[Hashable, TorchExecutor] | None = None

    def begin(
        self, sources: Sequence[Source], options: GenerationOptions, *, graphs: bool, alignments: bool
    ) -> TorchExecutor:
        backend = self._backend
        values = backend.encode(sources)
        n_sources, length = values["source_mask"].shape
        positions = capacity(options, backend.bundle.max_target_length)
        letters = {"B": n_sources, "S": length, "K": options.n_rows, "C": positions, "N": positions * options.n_rows}
        shape = (tuple(letters.values()), alignments)
        if self._last is None or self._last[0] != shape:
            self._last = None
            executor = TorchExecutor(backend, self._stream, {**letters, "M": 1, "Q": 1}, alignments)
            self._last = (shape, executor)
        executor = self._last[1]
        if backend.device.type == "cuda":
            torch.cuda.current_stream(backend.device).synchronize()  # the encoder ran in torch's own stream
        executor.restart(values)
        return executor

    def close(self) -> None:
        self._last = None
        self._backend.search_device.destroy_stream(self._stream)


class TorchSlotFactory:
    """See `searcher.SlotFactory`. PyTorch takes any number of sources."""

    most_sources: int | None = None

    def __init__(self, backend: TorchDeviceBackend) -> None:
        self.device = backend.search_device
        self.kind: SourceKind = backend.kind
        self._backend = backend

    def shape_of(self, sources: Sequence[Source], options: GenerationOptions) -> Hashable:
        return (
            len(sources), options.n_rows, capacity(options, self._backend.bundle.max_target_length),
            max(map(self.kind.length, sources)),
        )  # fmt: skip

    def make(self) -> TorchSlot:
        return TorchSlot(self._backend)
