"""Device memory, streams and copies: a few functions of the CUDA driver, through ctypes. No CUDA package is needed.

`Device` is the whole interface that the rest uses; a test puts host memory in its place.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import BackendError, BackendUnavailable
from . import faults

LIBRARY = "libcuda.so.1"
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}
_POINTER, _SIZE, _INT = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int
_HANDLE = ctypes.c_void_p


class _Rows(ctypes.Structure):
    """CUDA_MEMCPY2D: a block of rows out of wider ones."""

    _fields_ = (
        *(("src_x", _SIZE), ("src_y", _SIZE), ("src_type", ctypes.c_uint), ("src_host", _HANDLE)),
        *(("src_device", _POINTER), ("src_array", _HANDLE), ("src_pitch", _SIZE)),
        *(("dst_x", _SIZE), ("dst_y", _SIZE), ("dst_type", ctypes.c_uint), ("dst_host", _HANDLE)),
        *(("dst_device", _POINTER), ("dst_array", _HANDLE), ("dst_pitch", _SIZE)),
        *(("width", _SIZE), ("height", _SIZE)),
    )


HOST, DEVICE = 1, 2  # CU_MEMORYTYPE_*
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorString": (_INT, ctypes.POINTER(ctypes.c_char_p)),
    "cuDriverGetVersion": (ctypes.POINTER(_INT),),
    "cuDeviceGetCount": (ctypes.POINTER(_INT),),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_HANDLE), _INT),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemAlloc_v2": (ctypes.POINTER(_POINTER), _SIZE),
    "cuMemFree_v2": (_POINTER,),
    "cuMemHostAlloc": (ctypes.POINTER(_HANDLE), _SIZE, ctypes.c_uint),
    "cuMemFreeHost": (_HANDLE,),
    "cuMemcpyHtoDAsync_v2": (_POINTER, _HANDLE, _SIZE, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (_HANDLE, _POINTER, _SIZE, _HANDLE),
    "cuMemcpyDtoDAsync_v2": (_POINTER, _POINTER, _SIZE, _HANDLE),
    "cuMemcpy2DAsync_v2": (ctypes.POINTER(_Rows), _HANDLE),
    "cuMemsetD8Async": (_POINTER, ctypes.c_ubyte, _SIZE, _HANDLE),
    "cuStreamCreate": (ctypes.POINTER(_HANDLE), ctypes.c_uint),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamSynchronize": (_HANDLE,),
}


class Device:
    """One GPU, its primary context retained. Raises BackendUnavailable without a driver or a GPU."""

    name = "the GPU"  # until its own is known

    def __init__(self, index: int = 0) -> None:
        self._driver = _load()
        self._check(self._driver.cuInit(0), "cuInit", BackendUnavailable)
        count, device = _INT(), _INT()
        self._check(self._driver.cuDeviceGetCount(ctypes.byref(count)), "counting GPUs")
        if index >= count.value:
            raise BackendUnavailable(f"the CUDA driver sees {count.value} GPUs; expected at least {index + 1}")
        self._check(self._driver.cuDeviceGet(ctypes.byref(device), index), "opening the GPU")
        name = ctypes.create_string_buffer(128)
        self._check(self._driver.cuDeviceGetName(name, 128, device), "naming the GPU")
        self.name = name.value.decode()
        major, minor = (self._attribute(which, device) for which in (CAPABILITY_MAJOR, CAPABILITY_MINOR))
        self.capability = f"{major}.{minor}"
        self._context = _HANDLE()
        self._check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device), "opening a context")
        self.activate()

    def _attribute(self, which: int, device: Any) -> int:
        value = _INT()
        self._check(self._driver.cuDeviceGetAttribute(ctypes.byref(value), which, device), "asking the GPU")
        return value.value

    def activate(self) -> None:
        """Make this GPU current for the calling thread; every thread has to, once."""
        self._check(self._driver.cuCtxSetCurrent(self._context), "choosing the GPU")

    @property
    def cuda_version(self) -> str:
        value = _INT()
        self._check(self._driver.cuDriverGetVersion(ctypes.byref(value)), "asking the driver")
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    @property
    def free_bytes(self) -> int:
        free, total = _SIZE(), _SIZE()
        self._check(self._driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "asking for memory")
        return int(free.value)

    # Memory

    def allocate(self, n_bytes: int, what: str = "a tensor") -> int:
        """The address of `n_bytes` of device memory for `what`. Raises OutOfMemory when there is too little."""
        address = _POINTER()
        status = self._driver.cuMemAlloc_v2(ctypes.byref(address), max(n_bytes, 1))
        if status == faults.OUT_OF_MEMORY:
            raise faults.out_of_memory(self.name, what, n_bytes, self.free_bytes)
        self._check(status, f"allocating {n_bytes} bytes for {what}")
        return int(address.value)

    def free(self, address: int) -> None:
        self._driver.cuMemFree_v2(address)

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A numpy array in page-locked memory, which copies without a stop in between. It lives as long as the process
        or until `free_host`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = _HANDLE()
        self._check(self._driver.cuMemHostAlloc(ctypes.byref(pointer), max(size, 1), 0), f"locking {size} bytes")
        raw = (ctypes.c_ubyte * max(size, 1)).from_address(pointer.value or 0)
        return np.frombuffer(raw, dtype=dtype, count=int(np.prod(shape))).reshape(shape)

    def free_host(self, array: Any) -> None:
        self._driver.cuMemFreeHost(array.ctypes.data)

    # Streams and copies; all of them are queued and return at once

    def create_stream(self) -> int:
        stream = _HANDLE()
        self._check(self._driver.cuStreamCreate(ctypes.byref(stream), NON_BLOCKING), "making a stream")
        return int(stream.value or 0)

    def destroy_stream(self, stream: int) -> None:
        self._driver.cuStreamDestroy_v2(stream)

    def synchronize(self, stream: int) -> None:
        """Wait. An error of anything that was queued shows here."""
        self._check(self._driver.cuStreamSynchronize(stream), "running on the GPU")

    def to_device(self, address: int, array: Any, stream: int) -> None:
        self._check(
            self._driver.cuMemcpyHtoDAsync_v2(address, array.ctypes.data, array.nbytes, stream), "copying to the GPU"
        )

    def to_host(self, array: Any, address: int, stream: int) -> None:
        self._check(
            self._driver.cuMemcpyDtoHAsync_v2(array.ctypes.data, address, array.nbytes, stream), "copying from the GPU"
        )

    def columns_to_device(self, address: int, array: Any, n_columns: int, stream: int) -> None:
        """The first columns of each row. array [rows, columns], contiguous, with an equal one on the device."""
        row, width = array.shape[1] * array.itemsize, n_columns * array.itemsize
        block = _Rows(
            src_type=HOST, src_host=array.ctypes.data, src_pitch=row, dst_type=DEVICE, dst_device=address,
            dst_pitch=row, width=width, height=array.shape[0],
        )  # fmt: skip
        self._check(self._driver.cuMemcpy2DAsync_v2(ctypes.byref(block), stream), "copying to the GPU")

    def move(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        self._check(self._driver.cuMemcpyDtoDAsync_v2(target, source, n_bytes, stream), "copying on the GPU")

    def move_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, n_bytes: int, n_rows: int, stream: int
    ) -> None:
        """The first bytes of each row into the first of another array's rows; pitches are whole rows, in bytes."""
        block = _Rows(
            src_type=DEVICE, src_device=source, src_pitch=source_pitch, dst_type=DEVICE, dst_device=target,
            dst_pitch=target_pitch, width=n_bytes, height=n_rows,
        )  # fmt: skip
        self._check(self._driver.cuMemcpy2DAsync_v2(ctypes.byref(block), stream), "copying on the GPU")

    def zero(self, address: int, n_bytes: int, stream: int) -> None:
        self._check(self._driver.cuMemsetD8Async(address, 0, n_bytes, stream), "clearing memory")

    def _check(self, status: int, what: str, error: type[BackendError] = BackendError) -> None:
        """Raises `error` unless a driver's call succeeded, DeviceLost where no later one will."""
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            reason = text.value.decode() if text.value else "no text"
            if status in faults.FATAL:
                raise faults.lost(self.name, what, status, reason)
            raise error(f"{what} failed with CUDA error {status} ({reason}); expected success; run s2s doctor")


class Buffers:
    """Device memory by name, for tensors whose shapes change from batch to batch. device: or what looks like it."""

    def __init__(self, device: Any, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._places: dict[str, tuple[int, int]] = {}  # address, bytes

    def get(self, name: str, shape: Sequence[int], dtype: str) -> int:
        """The address of a tensor's memory, the same each time unless it has to grow."""
        needed = n_bytes(shape, dtype)
        address, size = self._places.get(name, (0, 0))
        if size < needed or not address:
            if address:
                self._device.synchronize(self._stream)
                self._device.free(self._places.pop(name)[0])
            address = self._device.allocate(needed, f"{name} [{', '.join(map(str, shape))}]")
            self._places[name] = (address, needed)
        return address

    def close(self) -> None:
        for address, _ in self._places.values():
            self._device.free(address)
        self._places.clear()


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


@functools.cache
def _load() -> Any:
    try:
        driver = ctypes.CDLL(LIBRARY)
        for name, arguments in _FUNCTIONS.items():
            function = getattr(driver, name)
            function.argtypes, function.restype = list(arguments), _INT
    except OSError as error:
        raise BackendUnavailable(f"no CUDA driver on this machine ({LIBRARY} can't be opened)") from error
    except AttributeError as error:
        raise BackendUnavailable(f"this CUDA driver is too old ({error}); update it") from error
    return driver
