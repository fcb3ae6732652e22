"""Device memory, streams and copies: a few functions of the CUDA driver, through ctypes. No CUDA package is needed.

`Device` is the whole interface that the rest uses; a test puts host memory in its place.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from ..errors import BackendError, BackendUnavailable

LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
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
    "cuStreamSynchronize": (_HANDLE,),
}


class Device:
    """One GPU, its primary context retained. Raises BackendUnavailable without a driver or a GPU."""

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

    def allocate(self, n_bytes: int) -> int:
        """The address of `n_bytes` of device memory. Raises BackendError when there is too little."""
        address = _POINTER()
        status = self._driver.cuMemAlloc_v2(ctypes.byref(address), max(n_bytes, 1))
        if status == OUT_OF_MEMORY:
            raise BackendError(
                f"{self.name} has {self.free_bytes / 2**20:.0f} MiB free, but {n_bytes / 2**20:.0f} MiB more are "
                "needed; lower the batch size, or build the target with smaller ranges"
            )
        self._check(status, f"allocating {n_bytes} bytes")
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

    def zero(self, address: int, n_bytes: int, stream: int) -> None:
        self._check(self._driver.cuMemsetD8Async(address, 0, n_bytes, stream), "clearing memory")

    def _check(self, status: int, what: str, error: type[BackendError] = BackendError) -> None:
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            reason = text.value.decode() if text.value else "no text"
            raise error(f"{what} failed with CUDA error {status} ({reason}); expected success; run s2s doctor")


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
