"""An emulated device: the kernels' CPU build on host memory, for machines without a GPU.

It has the interface of `CudaDevice`, and is stricter than a GPU: fresh memory holds 0xff, every allocation has
canaries around it, and a launch with a wrong name or a kernel that misses a barrier is an error. Whatever is queued
runs at once, except while a graph is captured: then it is stored in the graph.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...errors import BackendError
from . import faults
from .interface import Launch, Queued

CANARY = 64
_lock = threading.Lock()  # the host build emulates one GPU


@functools.cache
def _library(folder: str = "beam_search") -> ctypes.CDLL:
    return ctypes.CDLL(str(plugin_sources.module("build").host_library(folder)))


class HostKernels:
    """See `interface.Kernels`."""

    def __init__(self, device: HostDevice, folder: str) -> None:
        self._device = device
        self._folder = folder
        self._is_odd = False

    def run(self, launch: Launch, given: ctypes.Structure, stream: int) -> None:
        copied = type(given).from_buffer_copy(given)  # as a driver copies a kernel's arguments
        self._device.call(lambda: self._device._run(launch, copied, self._folder))

    def run_chain(self, queued: Sequence[Queued], stream: int) -> None:
        """Every second launch begins before the one before it, and the others do at the next call: whatever a kernel
        reads before it waits is what was there before."""
        copied = [(launch, type(given).from_buffer_copy(given)) for launch, given in queued]
        self._device.call(lambda: self._chain(copied))

    def _chain(self, queued: Sequence[Queued]) -> None:
        self._is_odd = not self._is_odd
        at = 0
        if self._is_odd:
            self._device._run(*queued[0], self._folder)
            at = 1
        while at + 1 < len(queued):
            self._run_pair(queued[at], queued[at + 1])
            at += 2
        if at < len(queued):
            self._device._run(*queued[at], self._folder)

    def _run_pair(self, first: Queued, second: Queued) -> None:
        failed: list[BackendError] = []

        def run() -> None:
            try:
                self._device._run_unlocked(*first, self._folder)
            except BackendError as error:
                failed.append(error)

        with _lock:
            library, callback = _library(self._folder), ctypes.CFUNCTYPE(None)(run)
            library.s2s_host_predecessor(callback)
            self._device._run_unlocked(*second, self._folder)
            if not library.s2s_host_has_waited():
                raise BackendError(
                    f"the kernel {second[0].kernel} does not wait for {first[0].kernel}; expected await_predecessor in "
                    "every thread; this is a defect"
                )
        if failed:
            raise failed[0]


class HostGraph:
    """Calls that were captured, in order. With a condition they repeat until a call sets it to 0."""

    def __init__(self, calls: list[Callable[[], object]], condition: NDArray[np.uint32] | None = None) -> None:
        self.calls = calls
        self._condition = condition

    def launch(self, stream: int) -> None:
        if self._condition is None:
            self._once()
            return
        self._condition[0] = 1
        while self._condition[0]:
            self._once()

    def _once(self) -> None:
        for call in self.calls:
            call()

    def close(self) -> None:
        self.calls = []


class HostDevice:
    """For tests of faults: memory_limit, the bytes it has; fail_after, the launches after which it is lost."""

    name = "host emulation"

    def __init__(
        self, *, while_graphs: bool = True, memory_limit: int | None = None, fail_after: int | None = None
    ) -> None:
        self.while_graphs = while_graphs
        self.memory_limit = memory_limit
        self.fail_after = fail_after
        self.n_launches = 0
        self.launched: list[str] = []
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._capturing = threading.local()  # `calls` of the thread that captures: streams are the threads' own
        self._is_lost = False
        self.library: Any = None  # what stands for cuBLASLt in a test

    def matrix_library(self) -> Any:
        return self.library

    def run_call(self, call: Callable[[int], None], stream: int) -> None:
        self.call(functools.partial(call, stream))

    def activate(self) -> None:
        pass

    @property
    def allocated(self) -> int:
        return sum(block.size - 2 * CANARY for block in self._blocks.values())

    def allocate(self, n_bytes: int, what: str = "tables") -> int:
        if self.memory_limit is not None and self.allocated + n_bytes > self.memory_limit:
            raise faults.out_of_memory(self.name, what, n_bytes, self.memory_limit - self.allocated)
        block = np.full(n_bytes + 2 * CANARY + 256, 0xFF, np.uint8)
        skip = -(block.ctypes.data + CANARY) % 256
        block = block[skip : skip + n_bytes + 2 * CANARY]
        address = int(block.ctypes.data) + CANARY
        self._blocks[address] = block
        return address

    def free(self, address: int) -> None:
        block = self._blocks.pop(address)
        if (block[:CANARY] != 0xFF).any() or (block[-CANARY:] != 0xFF).any():
            raise BackendError("a kernel wrote outside its memory; expected it to stay inside; this is a defect")

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def free_host(self, array: NDArray[Any]) -> None:
        pass

    def mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], int]:
        array = np.zeros(shape, dtype)
        return array, int(array.ctypes.data)

    def release_mapped(self, array: NDArray[Any]) -> None:
        pass

    def create_stream(self) -> int:
        return 1

    def destroy_stream(self, stream: int) -> None:
        pass

    def synchronize(self, stream: int) -> None:
        if self._is_lost:
            raise faults.lost(self.name, "decoding", 700, "an illegal address, as the test asked for")

    def is_idle(self, stream: int) -> bool:
        self.synchronize(stream)
        return True

    def to_device(self, address: int, array: NDArray[Any], stream: int) -> None:
        self.call(functools.partial(ctypes.memmove, address, array.ctypes.data, array.nbytes))

    def to_host(self, array: NDArray[Any], address: int, stream: int) -> None:
        self.call(functools.partial(ctypes.memmove, array.ctypes.data, address, array.nbytes))

    def move(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        self.call(functools.partial(ctypes.memmove, target, source, n_bytes))

    def columns_to_device(self, address: int, array: NDArray[Any], n_columns: int, stream: int) -> None:
        for number, row in enumerate(array):
            self.to_device(address + number * row.nbytes, row[:n_columns], stream)

    def move_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, n_bytes: int, n_rows: int, stream: int
    ) -> None:
        for row in range(n_rows):
            self.move(target + row * target_pitch, source + row * source_pitch, n_bytes, stream)

    def zero(self, address: int, n_bytes: int, stream: int) -> None:
        self.call(functools.partial(ctypes.memset, address, 0, n_bytes))

    def seconds(self, stream: int, body: Callable[[], None]) -> float:
        """The seconds that the emulation takes. They say nothing about a GPU."""
        begin = time.perf_counter()
        body()
        return time.perf_counter() - begin

    def run(self, launch: Launch, given: ctypes.Structure, stream: int) -> None:
        copied = type(given).from_buffer_copy(given)  # as a driver copies a kernel's arguments
        self.call(lambda: self._run(launch, copied))

    def kernels(self, folder: str, probe: str = "") -> HostKernels:
        """probe: not needed, as every library has all kernels."""
        return HostKernels(self, folder)

    def call(self, function: Callable[[], object]) -> None:
        """Queues a Python function, as a step executor for this device does."""
        calls = getattr(self._capturing, "calls", None)
        if calls is not None:
            calls.append(function)
        else:
            function()

    def _run(self, launch: Launch, given: ctypes.Structure, folder: str = "beam_search") -> None:
        with _lock:
            self._run_unlocked(launch, given, folder)

    def _run_unlocked(self, launch: Launch, given: ctypes.Structure, folder: str) -> None:
        self.n_launches += 1
        self.launched.append(launch.kernel)
        if self.fail_after is not None and self.n_launches > self.fail_after:
            self._is_lost = True
        if self._is_lost:
            self.synchronize(0)
        grid = (ctypes.c_uint32 * 3)(*launch.grid)
        by_name = getattr(_library(folder), f"s2s_{folder}_by_name")
        status = by_name(launch.kernel.encode(), ctypes.byref(given), grid, launch.threads)
        if status:
            raise BackendError(f"the host build of {launch.kernel} returned {status}; expected 0; this is a defect")

    def capture(self, stream: int, body: Callable[[], None]) -> HostGraph:
        return HostGraph(self._captured(body))

    def capture_while(self, stream: int, body: Callable[[int], None]) -> HostGraph:
        condition = np.zeros(2, np.uint32)
        return HostGraph(self._captured(lambda: body(int(condition.ctypes.data))), condition)

    def _captured(self, body: Callable[[], None]) -> list[Callable[[], object]]:
        calls: list[Callable[[], object]] = []
        self._capturing.calls = calls
        try:
            body()
            return calls
        finally:
            self._capturing.calls = None
