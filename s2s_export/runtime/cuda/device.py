"""A GPU: memory, kernels and graphs by the CUDA driver alone, through ctypes.

Memory and copies are those of `tensorrt.memory`; here are kernels, graphs and mapped memory. Not yet run on a GPU:
tests run it against a library that has the driver's functions.
"""

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
from ...errors import BackendError, BackendUnavailable
from . import driver as memory
from . import graphs
from .graphs import HANDLE
from .interface import Launch

# What loading a binary says when the driver is older than the compiler: unsupported PTX version, no image for this GPU,
# an image it can't read.
TOO_OLD = frozenset({222, 209, 200, 218})
ANY_KERNEL = "publish_step"  # of beam_search: one that every search queues


class CudaGraph:
    """An instantiated graph."""

    def __init__(self, device: CudaDevice, graph: Any, executable: Any) -> None:
        self._device = device
        self._graph = graph
        self._executable = executable

    def launch(self, stream: int) -> None:
        self._device.check(self._device.driver.cuGraphLaunch(self._executable, stream), "launching a graph")

    def close(self) -> None:
        self._device.driver.cuGraphExecDestroy(self._executable)
        self._device.driver.cuGraphDestroy(self._graph)


class CudaDevice(memory.Device):
    """binary: beam_search as a fatbin or cubin; None builds it, which takes nvcc, or takes it from the cache."""

    def __init__(self, index: int = 0, binary: Path | None = None) -> None:
        super().__init__(index)
        self.driver: Any = self._driver
        try:
            knows_while = graphs.declare(self.driver)
        except AttributeError as error:
            raise BackendUnavailable(
                f"this CUDA driver is too old ({error}); graphs need one of CUDA 12 or later; update it"
            ) from error
        self.while_graphs = knows_while and self._instantiates_while()
        self._binary = binary
        self._library: Any = None
        self._kernels: dict[str, Any] = {}
        self._lock = threading.Lock()

    def check(self, status: int, what: str) -> None:
        """See `memory.Device`: what each of the driver's calls is given to."""
        self._check(status, what)

    # Memory

    def mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], int]:
        count = int(np.prod(shape))
        size = max(count * np.dtype(dtype).itemsize, 1)
        pointer, address = HANDLE(), ctypes.c_uint64()
        status = self.driver.cuMemHostAlloc(ctypes.byref(pointer), size, graphs.DEVICE_MAP)
        self.check(status, f"locking {size} bytes")
        status = self.driver.cuMemHostGetDevicePointer_v2(ctypes.byref(address), pointer, 0)
        self.check(status, "mapping host memory")
        raw = (ctypes.c_ubyte * size).from_address(pointer.value or 0)
        array = np.frombuffer(raw, dtype=dtype, count=count).reshape(shape)
        array[...] = 0
        return array, int(address.value)

    def release_mapped(self, array: NDArray[Any]) -> None:
        self.driver.cuMemFreeHost(array.ctypes.data)

    def is_idle(self, stream: int) -> bool:
        status = self.driver.cuStreamQuery(stream)
        if status == graphs.NOT_READY:
            return False
        self.check(status, "decoding")
        return True

    # Kernels

    def run(self, launch: Launch, given: ctypes.Structure, stream: int) -> None:
        kernel = self._kernels.get(launch.kernel) or self._find(launch.kernel)
        arguments = (HANDLE * 1)(ctypes.addressof(given))  # the driver copies it before it returns
        status = self.driver.cuLaunchKernel(kernel, *launch.grid, launch.threads, 1, 1, 0, stream, arguments, None)
        self.check(status, f"launching {launch.kernel}")

    def load_kernels(self) -> None:
        """Before they are needed, so that what is missing shows early: a driver that loads lazily looks into a binary
        only when one of its functions is asked for."""
        self._find(ANY_KERNEL)

    def _find(self, name: str) -> Any:
        with self._lock:
            if self._library is None:
                self._library = self._load_binary()
            kernel, function = HANDLE(), HANDLE()
            status = self.driver.cuLibraryGetKernel(ctypes.byref(kernel), self._library, name.encode())
            status = status or self.driver.cuKernelGetFunction(ctypes.byref(function), kernel)
            self._check_loaded(status, f"finding the kernel {name}")
            self._kernels[name] = kernel
        return kernel

    def _load_binary(self) -> Any:
        if self._binary is None:
            self._binary = plugin_sources.module("build").binary_for("beam_search", self.capability)
        library, data = HANDLE(), self._binary.read_bytes()
        status = self.driver.cuLibraryLoadData(ctypes.byref(library), data, None, None, 0, None, None, 0)
        self._check_loaded(status, f"loading {self._binary}")
        return library

    def _check_loaded(self, status: int, what: str) -> None:
        if status in TOO_OLD:
            name = "the kernels" if self._binary is None else self._binary.name
            raise BackendUnavailable(
                f"the driver of {self.name} is of CUDA {self.cuda_version} and can't load {name}; expected at "
                "least the version of the nvcc that made it; update the driver, or build with an older nvcc"
            )
        self.check(status, what)

    # Graphs

    def capture(self, stream: int, body: Callable[[], None]) -> CudaGraph:
        self.check(self.driver.cuStreamBeginCapture_v2(stream, graphs.RELAXED), "beginning a capture")
        graph = self._captured(stream, body)
        return self._instantiate(graph)

    def capture_while(self, stream: int, body: Callable[[int], None]) -> CudaGraph:
        graph, condition = HANDLE(), ctypes.c_uint64()
        self.check(self.driver.cuGraphCreate(ctypes.byref(graph), 0), "making a graph")
        try:
            status = self.driver.cuGraphConditionalHandleCreate(
                ctypes.byref(condition), graph, self._context, 1, graphs.ASSIGN_DEFAULT
            )
            self.check(status, "making a graph's condition")
            node, parameters = HANDLE(), graphs.NodeParameters(type=graphs.CONDITIONAL)
            parameters.of.conditional.handle = condition.value
            parameters.of.conditional.type = graphs.WHILE
            parameters.of.conditional.size = 1
            parameters.of.conditional.context = self._context
            status = self.driver.cuGraphAddNode_v2(ctypes.byref(node), graph, None, None, 0, ctypes.byref(parameters))
            self.check(status, "adding a WHILE node")
            inner = parameters.of.conditional.graphs[0]
            status = self.driver.cuStreamBeginCaptureToGraph(stream, inner, None, None, 0, graphs.RELAXED)
            self.check(status, "beginning a capture into a WHILE node")
            self._captured(stream, lambda: body(condition.value))
            return self._instantiate(graph)
        except BaseException:
            self.driver.cuGraphDestroy(graph)
            raise

    def _instantiates_while(self) -> bool:
        """Whether a WHILE graph can be made here: a driver's version does not say so on every platform."""
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
        """What `body` queues; the capture is ended even where it fails, as the stream is useless else."""
        graph = HANDLE()
        try:
            body()
        except BaseException:
            self.driver.cuStreamEndCapture(stream, ctypes.byref(graph))
            raise
        self.check(self.driver.cuStreamEndCapture(stream, ctypes.byref(graph)), "capturing a step")
        return graph

    def _instantiate(self, graph: Any) -> CudaGraph:
        executable = HANDLE()
        status = self.driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
        self.check(status, "instantiating a graph")
        return CudaGraph(self, graph, executable)

    # Time

    def seconds(self, stream: int, body: Callable[[], None]) -> float:
        """How long the device takes for what `body` queues, by its own clock."""
        start, end, elapsed = HANDLE(), HANDLE(), ctypes.c_float()
        for event in (start, end):
            self.check(self.driver.cuEventCreate(ctypes.byref(event), 0), "making an event")
        self.check(self.driver.cuEventRecord(start, stream), "recording an event")
        body()
        self.check(self.driver.cuEventRecord(end, stream), "recording an event")
        self.synchronize(stream)
        status = graphs.elapsed_time(self.driver)(ctypes.byref(elapsed), start, end)
        self.check(status, "reading the clock")
        for event in (start, end):
            self.driver.cuEventDestroy_v2(event)
        return elapsed.value / 1000


@functools.cache
def shared() -> CudaDevice:
    """The process's GPU, with its kernels loaded. Raises BackendUnavailable, or BuildError where there is no binary."""
    device = CudaDevice()
    device.load_kernels()
    return device
