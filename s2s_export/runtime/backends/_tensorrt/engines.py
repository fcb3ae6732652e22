"""Engines and what a decode needs around them: contexts, buffers, a stream.

A `Lane` is all that one batch in flight uses. Its contexts are made once; its buffers grow to the largest batch that it
has seen and keep their addresses otherwise; shapes and addresses are set when a batch begins, so that the launch of a
step is the same call with the same arguments each time and can be captured into a CUDA graph. Lanes are used again by
the next batch. Two threads that decode at the same time have two lanes.
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
from . import finished, validity
from .library import Library
from .messages import Messages


class Engines:
    """The three engines of a target, deserialised."""

    def __init__(self, bundle: Bundle, folder: Path, record: Mapping[str, Any], library: Library, device: Any) -> None:
        self.bundle = bundle
        self.folder = folder
        self.record = dict(record)
        self.library = library
        self.device = device
        self.graphs: Mapping[str, Any] = record["graphs"]
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
            kept_as = finished.folder() / f"{self.record['key'][:20]}-{name}-{device.capability}"
            self._configs[name], cache = finished.attach(engine, kept_as)
            if cache is not None:
                caches[kept_as] = cache
        weakref.finalize(self, finished.keep, caches)
        self._lanes: list[Lane] = []
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

    def create_context(self, name: str) -> Any:
        engine, config = self._engines[name], self._configs[name]
        context = engine.create_execution_context(config) if config is not None else engine.create_execution_context()
        if context is None:
            raise BackendError(
                f"{name}: no execution context ({self.messages.last_error()}); expected one; free memory on the GPU, "
                "or build the target with smaller ranges"
            )
        return context

    def take_lane(self) -> Lane:
        """A lane that no other batch uses."""
        with self._lock:
            lane = self._lanes.pop() if self._lanes else None
        if lane is None:
            return Lane(self)
        self.device.synchronize(lane.stream)  # a batch that was given up may still copy
        return lane

    def return_lane(self, lane: Lane) -> None:
        with self._lock:
            self._lanes.append(lane)


class Lane:
    """Contexts, buffers and a stream for one batch in flight. Not shared between threads."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.device = engines.device
        self.device.activate()
        self.stream = self.device.create_stream()
        self._contexts = {name: engines.create_context(name) for name in GRAPHS}
        self.buffers = driver.Buffers(self.device, self.stream)
        self._staging: dict[str, Any] = {}

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
        """Queue one graph. Nothing is waited for."""
        if not self._contexts[graph].execute_async_v3(self.stream):
            raise BackendError(f"{graph}: the launch failed ({self.engines.messages.last_error()}); run s2s doctor")

    def close(self) -> None:
        """Gives all memory back. Nothing of it may be in use."""
        self.buffers.close()
        for array in self._staging.values():
            self.device.free_host(array)
        self._staging.clear()
        self._contexts.clear()
        self.device.destroy_stream(self.stream)

    def upload(self, address: int, array: Any) -> None:
        self.device.to_device(address, array, self.stream)


def register_plugins(folder: Path, record: dict[str, Any], library: Library) -> None:
    """Make our kernels known before engines that hold them are loaded. Their binaries lie beside the engines."""
    from .... import plugin_sources

    binaries = {path.stem: path for path in folder.glob("*.fatbin")}
    if not binaries:
        raise EngineError(f"{folder}: holds no kernels (*.fatbin); {rebuild(folder, record)}")
    plugin_sources.module("glue.tensorrt_plugins").register(library.trt, binaries)
