"""A GPU as the search uses it: memory, kernels and graphs by the CUDA driver."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...errors import BackendError, BackendUnavailable, BuildError
from . import cublaslt, driver, libcuda
from .binary import LoadedBinary
from .interface import Launch
from .libcuda import HANDLE

SEARCH = "beam_search"  # the folder of the search's kernels
ANY_KERNEL = "finish_beam_step"  # of it: what every beam search queues


class CudaGraph:
    """An instantiated graph."""

    def __init__(self, device: CudaDevice, graph: Any, executable: Any) -> None:
        self._device = device
        self._graph = graph
        self._executable = executable

    def launch(self, stream: int) -> None:
        self._device._check(self._device._cu.cuGraphLaunch(self._executable, stream), "launching a graph")

    def close(self) -> None:
        self._device._cu.cuGraphExecDestroy(self._executable)
        self._device._cu.cuGraphDestroy(self._graph)


class CudaDevice(driver.Device):
    """See `interface.Device`. Adds kernels, mapped memory and graphs to `driver.Device`.

    binary: the kernels of beam_search as a fatbin or cubin; None takes the package's own or the cache's, or builds it,
    which takes nvcc. Raises BackendUnavailable for a driver older than CUDA 12.
    """

    def __init__(self, index: int = 0, binary: Path | None = None) -> None:
        super().__init__(index)
        self._driver.require({**libcuda.KERNELS, **libcuda.GRAPHS})
        self.while_graphs = self._driver.knows_while_nodes and self._instantiates_while()
        self._path = binary
        self._loaded: dict[str, LoadedBinary] = {}
        self._lock = threading.Lock()

    # Memory

    def mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], int]:
        count = int(np.prod(shape))
        size = max(count * np.dtype(dtype).itemsize, 1)
        pointer, address = HANDLE(), libcuda.ADDRESS()
        status = self._cu.cuMemHostAlloc(ctypes.byref(pointer), size, libcuda.DEVICE_MAP)
        self._check(status, f"locking {size} bytes")
        status = self._cu.cuMemHostGetDevicePointer_v2(ctypes.byref(address), pointer, 0)
        self._check(status, "mapping host memory")
        raw = (ctypes.c_ubyte * size).from_address(pointer.value or 0)
        array = np.frombuffer(raw, dtype=dtype, count=count).reshape(shape)
        array[...] = 0
        return array, int(address.value)

    def release_mapped(self, array: NDArray[Any]) -> None:
        self._cu.cuMemFreeHost(array.ctypes.data)

    def is_idle(self, stream: int) -> bool:
        status = self._cu.cuStreamQuery(stream)
        if status == libcuda.NOT_READY:
            return False
        self._check(status, "decoding")
        return True

    # Kernels

    def matrix_library(self) -> cublaslt.Library | None:
        self.activate()
        return cublaslt.found()

    def run_call(self, call: Callable[[int], None], stream: int) -> None:
        call(stream)

    def run(self, launch: Launch, given: ctypes.Structure, stream: int) -> None:
        (self._loaded.get(SEARCH) or self._load()).run(launch, given, stream)

    def load_kernels(self) -> None:
        """Loads the search's kernels before they are needed, so that whatever is missing shows early. Raises
        BackendUnavailable, or BuildError where there is no binary and no nvcc."""
        self._load()

    def kernels(self, folder: str, probe: str) -> LoadedBinary:
        """See `interface.Device`. Raises as `load_kernels`."""
        with self._lock:
            if folder not in self._loaded:
                given = self._path if folder == SEARCH else None
                self._loaded[folder] = self._open(given, probe) if given else self._open_ours(folder, probe)
            return self._loaded[folder]

    def _load(self) -> LoadedBinary:
        return self.kernels(SEARCH, ANY_KERNEL)

    def _open_ours(self, folder: str, probe: str) -> LoadedBinary:
        """The package's binary; where the driver is too old for that, one that this machine's nvcc makes."""
        build = plugin_sources.module("build")
        try:
            return self._open(build.binary_for(folder, self.capability, self.cuda_release), probe)
        except BackendUnavailable as too_old:
            try:
                path = build.compiled_for(folder, self.capability)
            except BuildError:
                raise too_old from None
            return self._open(path, probe)

    def _open(self, path: Path, probe: str) -> LoadedBinary:
        # Since CUDA 12.3 such launches can be captured into graphs.
        overlaps = self._driver.release >= (12, 3)
        loaded = LoadedBinary(self._driver, path.read_bytes(), path.name, self.name, overlaps)
        loaded.find(probe)
        return loaded

    # Graphs

    def capture(self, stream: int, body: Callable[[], None]) -> CudaGraph:
        self._check(self._cu.cuStreamBeginCapture_v2(stream, libcuda.RELAXED), "beginning a capture")
        graph = self._captured(stream, body)
        return self._instantiate(graph)

    def capture_while(self, stream: int, body: Callable[[int], None]) -> CudaGraph:
        graph, condition = HANDLE(), ctypes.c_uint64()
        self._check(self._cu.cuGraphCreate(ctypes.byref(graph), 0), "making a graph")
        try:
            status = self._cu.cuGraphConditionalHandleCreate(
                ctypes.byref(condition), graph, self._context, 1, libcuda.ASSIGN_DEFAULT
            )
            self._check(status, "making a graph's condition")
            node, parameters = HANDLE(), libcuda.NodeParameters(type=libcuda.CONDITIONAL)
            parameters.of.conditional.handle = condition.value
            parameters.of.conditional.type = libcuda.WHILE
            parameters.of.conditional.size = 1
            parameters.of.conditional.context = self._context
            status = self._cu.cuGraphAddNode_v2(ctypes.byref(node), graph, None, None, 0, ctypes.byref(parameters))
            self._check(status, "adding a WHILE node")
            inner = parameters.of.conditional.graphs[0]
            status = self._cu.cuStreamBeginCaptureToGraph(stream, inner, None, None, 0, libcuda.RELAXED)
            self._check(status, "beginning a capture into a WHILE node")
            self._captured(stream, lambda: body(condition.value))
            return self._instantiate(graph)
        except BaseException:
            self._cu.cuGraphDestroy(graph)
            raise

    def _instantiates_while(self) -> bool:
        """Tries to make a WHILE graph: not every platform supports all that its CUDA version should."""
        stream, address = self.create_stream(), self.allocate(4, "a trial")
        try:
            self.capture_while(stream, lambda condition: self.zero(address, 4, stream)).close()
        except BackendError:
            return False
        finally:
            self.free(address)
            self.destroy_stream(stream)
        return True

    def _captured(self, stream: int, body: Callable[[], None]) -> Any:
        """A graph of what `body` queues. A capture is ended even where that fails, as the stream
        could not be used again."""
        graph = HANDLE()
        try:
            body()
        except BaseException:
            self._cu.cuStreamEndCapture(stream, ctypes.byref(graph))
            raise
        self._check(self._cu.cuStreamEndCapture(stream, ctypes.byref(graph)), "capturing a step")
        return graph

    def _instantiate(self, graph: Any) -> CudaGraph:
        executable = HANDLE()
        status = self._cu.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
        self._check(status, "instantiating a graph")
        return CudaGraph(self, graph, executable)

    # Time

    def seconds(self, stream: int, body: Callable[[], None]) -> float:
        """The seconds that the device takes for what `body` queues, by its own clock."""
        start, end = HANDLE(), HANDLE()
        for event in (start, end):
            self._check(self._cu.cuEventCreate(ctypes.byref(event), 0), "making an event")
        self._check(self._cu.cuEventRecord(start, stream), "recording an event")
        body()
        self._check(self._cu.cuEventRecord(end, stream), "recording an event")
        self.synchronize(stream)
        elapsed = self._driver.elapsed_seconds(start, end)
        for event in (start, end):
            self._cu.cuEventDestroy_v2(event)
        return elapsed


@functools.cache
def shared() -> CudaDevice:
    """The process's GPU, with its kernels loaded. Raises BackendUnavailable, or BuildError where there is no binary."""
    device = CudaDevice()
    device.load_kernels()
    return device
