"""A GPU's memory, streams and copies, by the CUDA driver.

`Device` is the whole interface that engines use; a test puts host memory in its place. device.py adds kernels and
graphs to it, for the search.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import BackendError, BackendUnavailable
from . import faults, libcuda
from .libcuda import ADDRESS, HANDLE, RowCopy

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}


class Device:
    """One GPU, whose primary context is kept open. Addresses and streams are numbers.

    index: among the GPUs that the driver shows. Raises BackendUnavailable without a driver or a GPU. Every method
    raises BackendError with the driver's text, or DeviceLost.
    """

    name = "the GPU"  # until its own is known

    def __init__(self, index: int = 0) -> None:
        self._driver = libcuda.driver()
        self._cu: Any = self._driver.functions
        self._driver.start()
        count, device = self._driver.n_devices, ctypes.c_int()
        if index >= count:
            raise BackendUnavailable(
                f"the CUDA driver sees {count} GPUs; expected at least {index + 1}; check CUDA_VISIBLE_DEVICES"
            )
        self._check(self._cu.cuDeviceGet(ctypes.byref(device), index), "opening the GPU")
        name = ctypes.create_string_buffer(128)
        self._check(self._cu.cuDeviceGetName(name, 128, device), "naming the GPU")
        self.name = name.value.decode()
        attributes = (libcuda.CAPABILITY_MAJOR, libcuda.CAPABILITY_MINOR)
        major, minor = (self._attribute(which, device) for which in attributes)
        self.capability = f"{major}.{minor}"
        self._context = HANDLE()
        self._check(self._cu.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device), "opening a context")
        self.activate()

    def _attribute(self, which: int, device: Any) -> int:
        value = ctypes.c_int()
        self._check(self._cu.cuDeviceGetAttribute(ctypes.byref(value), which, device), "asking the GPU")
        return value.value

    def activate(self) -> None:
        """Make this GPU current for the calling thread; every thread has to, once."""
        self._check(self._cu.cuCtxSetCurrent(self._context), "choosing the GPU")

    @property
    def cuda_version(self) -> str:
        """The newest CUDA that the driver serves, such as "12.4"."""
        return self._driver.cuda_version

    @property
    def cuda_release(self) -> tuple[int, int]:
        """The same as numbers, such as (12, 4)."""
        return self._driver.release

    @property
    def free_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._check(self._cu.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "asking for memory")
        return int(free.value)

    # Memory

    def allocate(self, n_bytes: int, what: str = "a tensor") -> int:
        """The address of `n_bytes` of device memory for `what`. Raises OutOfMemory when there is too little."""
        address = ADDRESS()
        status = self._cu.cuMemAlloc_v2(ctypes.byref(address), max(n_bytes, 1))
        if status == faults.OUT_OF_MEMORY:
            raise faults.out_of_memory(self.name, what, n_bytes, self.free_bytes)
        self._check(status, f"allocating {n_bytes} bytes for {what}")
        return int(address.value)

    def free(self, address: int) -> None:
        self._cu.cuMemFree_v2(address)

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A numpy array in page-locked memory, which is copied asynchronously. It lives as long as the process
        or until `free_host`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = HANDLE()
        self._check(self._cu.cuMemHostAlloc(ctypes.byref(pointer), max(size, 1), 0), f"locking {size} bytes")
        raw = (ctypes.c_ubyte * max(size, 1)).from_address(pointer.value or 0)
        return np.frombuffer(raw, dtype=dtype, count=int(np.prod(shape))).reshape(shape)

    def free_host(self, array: Any) -> None:
        self._cu.cuMemFreeHost(array.ctypes.data)

    # Streams and copies; all of them are queued and return at once

    def create_stream(self) -> int:
        stream = HANDLE()
        self._check(self._cu.cuStreamCreate(ctypes.byref(stream), libcuda.NON_BLOCKING), "making a stream")
        return int(stream.value or 0)

    def destroy_stream(self, stream: int) -> None:
        self._cu.cuStreamDestroy_v2(stream)

    def synchronize(self, stream: int) -> None:
        """Wait for everything that was queued. Raises the errors of what was queued."""
        self._check(self._cu.cuStreamSynchronize(stream), "running on the GPU")

    def to_device(self, address: int, array: Any, stream: int) -> None:
        self._check(
            self._cu.cuMemcpyHtoDAsync_v2(address, array.ctypes.data, array.nbytes, stream), "copying to the GPU"
        )

    def to_host(self, array: Any, address: int, stream: int) -> None:
        self._check(
            self._cu.cuMemcpyDtoHAsync_v2(array.ctypes.data, address, array.nbytes, stream), "copying from the GPU"
        )

    def columns_to_device(self, address: int, array: Any, n_columns: int, stream: int) -> None:
        """The first columns of each row. array [rows, columns], contiguous, with an equal one on the device."""
        row, width = array.shape[1] * array.itemsize, n_columns * array.itemsize
        block = RowCopy(
            src_type=libcuda.HOST, src_host=array.ctypes.data, src_pitch=row,
            dst_type=libcuda.DEVICE, dst_device=address, dst_pitch=row, width=width, height=array.shape[0],
        )  # fmt: skip
        self._check(self._cu.cuMemcpy2DAsync_v2(ctypes.byref(block), stream), "copying to the GPU")

    def move(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        self._check(self._cu.cuMemcpyDtoDAsync_v2(target, source, n_bytes, stream), "copying on the GPU")

    def move_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, n_bytes: int, n_rows: int, stream: int
    ) -> None:
        """The first bytes of each row into the first of another array's rows; pitches are whole rows, in bytes."""
        block = RowCopy(
            src_type=libcuda.DEVICE, src_device=source, src_pitch=source_pitch,
            dst_type=libcuda.DEVICE, dst_device=target, dst_pitch=target_pitch, width=n_bytes, height=n_rows,
        )  # fmt: skip
        self._check(self._cu.cuMemcpy2DAsync_v2(ctypes.byref(block), stream), "copying on the GPU")

    def zero(self, address: int, n_bytes: int, stream: int) -> None:
        self._check(self._cu.cuMemsetD8Async(address, 0, n_bytes, stream), "clearing memory")

    def _check(self, status: int, what: str) -> None:
        """See `libcuda.Driver.check`."""
        self._driver.check(status, what, device=self.name)


class Buffers:
    """Device memory by name, for tensors whose shapes change from batch to batch.

    device: a `Device`, or an object with the same methods.
    """

    def __init__(self, device: Any, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._blocks: dict[str, tuple[int, int]] = {}  # address, bytes

    def get(self, name: str, shape: Sequence[int], dtype: str) -> int:
        """The address of a tensor's memory, the same each time unless it has to grow."""
        needed = n_bytes(shape, dtype)
        address, size = self._blocks.get(name, (0, 0))
        if size < needed or not address:
            if address:
                self._device.synchronize(self._stream)
                self._device.free(self._blocks.pop(name)[0])
            address = self._device.allocate(needed, f"{name} [{', '.join(map(str, shape))}]")
            self._blocks[name] = (address, needed)
        return address

    def close(self) -> None:
        for address, _ in self._blocks.values():
            self._device.free(address)
        self._blocks.clear()


def n_bytes(shape: Sequence[int], dtype: str) -> int:
    return int(np.prod(shape)) * ELEMENT_BYTES[dtype]


@functools.cache
def device() -> Device:
    """The process's GPU: the first that the driver shows (CUDA_VISIBLE_DEVICES chooses)."""
    return Device()


def unavailable() -> str | None:
    """Why there is no GPU to use, or None."""
    try:
        device()
    except BackendError as error:
        return str(error)
    return None
