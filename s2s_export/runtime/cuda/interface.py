"""What the search needs of a device: memory, copies, kernels and graphs.

Two devices exist: `CudaDevice` (device.py) and `HostDevice` (emulation.py), which runs the same kernels on the CPU. The
search uses both alike.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray


class Launch(Protocol):
    """A kernel by name, its grid and its threads a block: plugins/common/nodes.py."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int


Queued = tuple[Launch, ctypes.Structure]


class Kernels(Protocol):
    """The kernels of one folder of plugins/, on one device."""

    def run(self, launch: Launch, given: ctypes.Structure, stream: int) -> None:
        """Queues a kernel whose only argument is `given`, which is copied."""
        ...

    def run_chain(self, queued: Sequence[Queued], stream: int) -> None:
        """Queues kernels that call `await_predecessor` (plugins/common/cuda_or_host.cuh): each begins before the one
        before it has ended, where the GPU can do that."""
        ...


class Graph(Protocol):
    """Launches that were captured once and are queued together."""

    def launch(self, stream: int) -> None: ...

    def close(self) -> None: ...


class Device(Protocol):
    """Memory, copies, kernels and graphs. Addresses and streams are numbers; what is queued runs in order."""

    name: str
    while_graphs: bool  # whether a graph can repeat itself until a kernel says stop

    def activate(self) -> None: ...

    def allocate(self, n_bytes: int, what: str = "tables") -> int: ...

    def free(self, address: int) -> None: ...

    def mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], int]:
        """Host memory that kernels can write to: the array, and its address for kernels."""
        ...

    def release_mapped(self, array: NDArray[Any]) -> None: ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Waits for everything queued in the stream. Raises the errors of what was queued."""
        ...

    def is_idle(self, stream: int) -> bool: ...

    def to_device(self, address: int, array: NDArray[Any], stream: int) -> None: ...

    def to_host(self, array: NDArray[Any], address: int, stream: int) -> None: ...

    def move(self, target: int, source: int, n_bytes: int, stream: int) -> None: ...

    def move_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, n_bytes: int, n_rows: int, stream: int
    ) -> None:
        """The first bytes of each row into the first of another array's rows; pitches are whole rows, in bytes."""
        ...

    def zero(self, address: int, n_bytes: int, stream: int) -> None: ...

    def matrix_library(self) -> Any:
        """cuBLASLt (cublaslt.py) with the advised bytes of its workspace, or None."""
        ...

    def run_call(self, call: Callable[[int], None], stream: int) -> None:
        """Lets a library queue something."""
        ...

    def seconds(self, stream: int, body: Callable[[], None]) -> float:
        """The seconds that the device takes for what `body` queues."""
        ...

    def run(self, launch: Launch, given: ctypes.Structure, stream: int) -> None:
        """Queues a kernel of beam_search."""
        ...

    def kernels(self, folder: str, probe: str) -> Kernels:
        """The kernels of a folder of plugins/. probe: one of them, which is looked up at once, as a binary that this
        driver can't use shows only then."""
        ...

    def capture(self, stream: int, body: Callable[[], None]) -> Graph:
        """A graph of what `body` queues on `stream`. Nothing of it runs now."""
        ...

    def capture_while(self, stream: int, body: Callable[[int], None]) -> Graph:
        """The same, repeated until a kernel sets a condition to 0; at least once. `body` is given the condition."""
        ...
