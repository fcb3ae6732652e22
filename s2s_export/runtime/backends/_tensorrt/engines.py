"""The engines of a target, and what a decode needs around them: execution contexts, buffers, a stream.

An `ExecutionContext` is all that one batch in flight uses: one of TensorRT's own execution contexts for each of the
three graphs, with the buffers and the stream that they share. It is made once and used by one batch after another;
batches that are decoded at the same time have one each. Its buffers grow to the largest batch so far and otherwise keep
their addresses. Shapes and addresses are set when a batch begins, so that each step's launch is the same call with the
same arguments and can be captured into a CUDA graph.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....bundle import GRAPHS, Bundle, inside
from ....engines import rebuild, refuse_stale
from ....errors import BackendError, EngineError
from ...cuda import driver
from ...sources import kind_of
from . import kernel_cache, validity
from .library import Library
from .messages import Messages


class Engines:
    """The three engines of a target, deserialised."""

    def __init__(self, bundle: Bundle, folder: Path, record: Mapping[str, Any], library: Library, device: Any) -> None:
        self.bundle = bundle
        self.kind = kind_of(bundle)
        self.folder = folder
        self.record = dict(record)
        self.library = library
        self.device = device
        self.graphs: Mapping[str, Any] = record["graphs"]
        self.inputs = {entry["name"]: entry for name in GRAPHS for entry in self.graphs[name]["inputs"]}
        self.messages = Messages(library)
        device.activate()
        installed = f"{library.flavour} {library.version}"
        refuse_stale(bundle, folder, self.record, library=installed, capability=device.capability)
        if record["recipe"]["plugins"]:
            register_plugins(folder, self.record, library)
        self._runtime = library.trt.Runtime(self.messages.logger)
        self._engines = {name: self._load(name) for name in GRAPHS}
        caches: dict[Path, Any] = {}
        self._configs: dict[str, Any] = {}
        for name, engine in self._engines.items():
            cache_file = kernel_cache.folder() / f"{self.record['key'][:20]}-{name}-{device.capability}"
            self._configs[name], cache = kernel_cache.runtime_config(engine, cache_file)
            if cache is not None:
                caches[cache_file] = cache
        weakref.finalize(self, kernel_cache.save, caches)
        self._idle: list[ExecutionContext] = []  # given back, for the next batch
        self._lock = threading.Lock()

    def _load(self, name: str) -> Any:
        entry = self.record["files"].get(f"{name}.engine")
        path = inside(self.folder, f"{name}.engine")
        again = rebuild(self.folder, self.record)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: can't be read ({error.strerror}); {again}") from error
        if entry is None or len(data) != entry["bytes"]:
            expected = "no such file recorded" if entry is None else f"{entry['bytes']} bytes recorded"
            raise EngineError(f"{path}: {len(data)} bytes, {expected}; the engine is damaged; {again}")
        validity.check_header(self.folder, name, data, self.record, self.library, self._runtime)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"{path}: {self.library.name} can't load it ({self.messages.last_error()}); {again}")
        return engine

    def create_graph_context(self, name: str) -> Any:
        """One of TensorRT's execution contexts, of the graph `name`."""
        engine, config = self._engines[name], self._configs[name]
        context = engine.create_execution_context(config) if config is not None else engine.create_execution_context()
        if context is None:
            raise BackendError(
                f"{name}: no execution context ({self.messages.last_error()}); expected one; free memory on the GPU, "
                "or build the target with smaller ranges"
            )
        return context

    def scratch_bytes(self, name: str) -> int:
        """Device memory that the caller gives a context of this graph; 0 where contexts allocate their own."""
        if not kernel_cache.is_user_managed(self._configs[name]):
            return 0
        return int(self._engines[name].device_memory_size_v2)

    def take_context(self) -> ExecutionContext:
        """An execution context that no other batch uses: an idle one, or a new one."""
        with self._lock:
            context = self._idle.pop() if self._idle else None
        if context is None:
            return ExecutionContext(self)
        self.device.synchronize(context.stream)  # a batch that was abandoned may still copy
        return context

    def return_context(self, context: ExecutionContext) -> None:
        with self._lock:
            self._idle.append(context)


class ExecutionContext:
    """What one batch in flight uses. Not shared between threads. Raises BackendError, OutOfMemory or DeviceLost."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.device = engines.device
        self.device.activate()
        self.stream = self.device.create_stream()
        self._contexts = {name: engines.create_graph_context(name) for name in GRAPHS}  # TensorRT's own
        self.buffers = driver.Buffers(self.device, self.stream)
        self._give_scratch_memory()
        self._staging: dict[str, Any] = {}

    def _give_scratch_memory(self) -> None:
        """One block for the activations of all three graphs, since they run one after another in one stream."""
        sizes = {name: self.engines.scratch_bytes(name) for name in GRAPHS}
        if not any(sizes.values()):
            return
        address = self.buffers.get("scratch", (max(sizes.values()),), "bool")  # a byte an element
        for name, size in sizes.items():
            self._contexts[name].set_device_memory(address, size)

    def buffer(self, name: str, shape: Sequence[int], dtype: str) -> int:
        """The address of device memory for a tensor, the same each time unless it has to grow."""
        return self.buffers.get(name, shape, dtype)

    def staging(self, name: str, shape: Sequence[int], dtype: Any) -> Any:
        """A page-locked array, the same memory each time unless it has to grow."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        old = self._staging.get(name)
        if old is None or old.nbytes < size:
            if old is not None:
                self.device.synchronize(self.stream)
                self.device.free_host(old)
            old = self._staging[name] = self.device.host_array((max(size, 1),), np.uint8)
        return old[:size].view(dtype).reshape(tuple(shape))

    def set_shapes(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> None:
        context = self._contexts[graph]
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(int(size) for size in shape)):
                reason = self.engines.messages.last_error()
                raise BackendError(f"{graph}: {name} can't have shape {list(shape)} ({reason}); lower the batch size")

    def set_address(self, graph: str, name: str, address: int) -> None:
        if not self._contexts[graph].set_tensor_address(name, address):
            reason = self.engines.messages.last_error()
            raise BackendError(f"{graph}: the engine has no tensor {name} ({reason}); build the target again")

    def launch(self, graph: str) -> None:
        """Queues one graph, and returns at once."""
        if not self._contexts[graph].execute_async_v3(self.stream):
            raise BackendError(f"{graph}: the launch failed ({self.engines.messages.last_error()}); run s2s doctor")

    def refused_capture(self, graphs: Sequence[str]) -> str | None:
        """Why launches of these graphs can't be captured, according to the library; None where it doesn't object."""
        for name in graphs:
            asked = getattr(self._contexts[name], "is_stream_capturable", None)
            if asked is not None and not asked(self.stream):
                return (
                    f"{self.engines.library.name} says that launches of {name} can't be captured; expected an engine "
                    "that allocates nothing while it runs; build the target again"
                )
        return None

    def close(self) -> None:
        """Gives all memory back. Nothing of it may be in use."""
        self._contexts.clear()
        self.buffers.close()
        for array in self._staging.values():
            self.device.free_host(array)
        self._staging.clear()
        self.device.destroy_stream(self.stream)

    def upload(self, address: int, array: Any) -> None:
        self.device.to_device(address, array, self.stream)


def register_plugins(folder: Path, record: dict[str, Any], library: Library) -> None:
    """Make our kernels known before engines that hold them are loaded. Their binaries lie beside the engines.

    Raises BackendUnavailable where the driver can't load them."""
    from .... import plugin_sources

    binaries = {path.stem: path for path in folder.glob("*.fatbin")}
    if not binaries:
        raise EngineError(f"{folder}: holds no kernels (*.fatbin); {rebuild(folder, record)}")
    glue = plugin_sources.module("glue.tensorrt_plugins")
    glue.register(library.trt, binaries)
    glue.load(library.trt)
