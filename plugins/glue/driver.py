"""Loads a binary and launches its kernels with the CUDA driver: five functions of libcuda, through ctypes.

No CUDA package is needed, and none is imported. A loaded binary is good for every context of the process.
"""

from __future__ import annotations

import ctypes
import functools
import threading

from s2s_export.errors import BackendError, BackendUnavailable

from ..common.nodes import Launch

LIBRARY = "libcuda.so.1"
_POINTER = ctypes.c_void_p
_FUNCTIONS = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuLibraryLoadData": (
        *(ctypes.POINTER(_POINTER), ctypes.c_char_p),
        *(_POINTER, _POINTER, ctypes.c_uint, _POINTER, _POINTER, ctypes.c_uint),
    ),
    "cuLibraryGetKernel": (ctypes.POINTER(_POINTER), _POINTER, ctypes.c_char_p),
    "cuLaunchKernel": (_POINTER, *(ctypes.c_uint,) * 7, _POINTER, ctypes.POINTER(_POINTER), _POINTER),
}


class Driver:
    """The driver's library. Raises BackendUnavailable when it is missing or older than CUDA 12."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            loaded = ctypes.CDLL(library)
            for name, arguments in _FUNCTIONS.items():
                function = getattr(loaded, name)
                function.argtypes, function.restype = list(arguments), ctypes.c_int
        except OSError as problem:
            raise BackendUnavailable(
                f"no CUDA driver ({problem}); kernels need {library}; install NVIDIA's driver, or use the CPU"
            ) from problem
        except AttributeError as problem:
            raise BackendUnavailable(
                f"this CUDA driver is too old ({problem}); expected one of CUDA 12 or later; update the driver"
            ) from problem
        self._loaded = loaded
        self.check(loaded.cuInit(0), "cuInit")

    def check(self, status: int, what: str) -> None:
        """Turns a CUresult into an error with the driver's text."""
        if status:
            text = ctypes.c_char_p()
            self._loaded.cuGetErrorString(status, ctypes.byref(text))
            reason = text.value.decode() if text.value else "no text"
            raise BackendError(f"{what} failed with {status} ({reason}); expected success; run 's2s doctor'")

    def load(self, binary: bytes) -> Binary:
        """A fatbin, cubin or PTX, loaded."""
        handle = _POINTER()
        status = self._loaded.cuLibraryLoadData(ctypes.byref(handle), binary, None, None, 0, None, None, 0)
        self.check(status, f"loading a binary of {len(binary)} bytes")
        return Binary(self, handle)

    def kernel(self, binary: _POINTER, name: str) -> _POINTER:
        handle = _POINTER()
        status = self._loaded.cuLibraryGetKernel(ctypes.byref(handle), binary, name.encode())
        self.check(status, f"finding the kernel {name}")
        return handle

    def launch(self, kernel: _POINTER, launch: Launch, argument: ctypes.Structure, stream: int) -> None:
        """Queues a kernel whose only argument is `argument`. The driver copies it before it returns."""
        arguments = (_POINTER * 1)(ctypes.addressof(argument))
        status = self._loaded.cuLaunchKernel(kernel, *launch.grid, launch.threads, 1, 1, 0, stream, arguments, None)
        self.check(status, f"launching {launch.kernel}")


class Binary:
    """A loaded binary; finds each kernel once. Safe to use from several threads."""

    def __init__(self, driver: Driver, handle: _POINTER) -> None:
        self._driver = driver
        self._handle = handle
        self._kernels: dict[str, _POINTER] = {}
        self._lock = threading.Lock()

    def run(self, launch: Launch, argument: ctypes.Structure, stream: int) -> None:
        with self._lock:
            kernel = self._kernels.get(launch.kernel)
            if kernel is None:
                kernel = self._kernels[launch.kernel] = self._driver.kernel(self._handle, launch.kernel)
        self._driver.launch(kernel, launch, argument, stream)


@functools.cache
def driver() -> Driver:
    """The process's driver, opened at the first call."""
    return Driver()
