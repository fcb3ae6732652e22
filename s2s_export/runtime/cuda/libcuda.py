"""The only binding to the CUDA driver: the functions of libcuda with their types, through ctypes, and one check.

    driver = libcuda.driver()                        # the process's own, or BackendUnavailable
    driver.check(driver.functions.cuInit(0), "starting CUDA")

No CUDA package is needed. The structures and constants are those of cuda.h; a test compiles them against it. What the
functions are used for is in the files beside this one: memory and streams in driver.py, kernels in binary.py, graphs in
device.py.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

from ...errors import BackendError, BackendUnavailable
from . import faults

LIBRARY = "libcuda.so.1"

HANDLE = ctypes.c_void_p  # contexts, streams, graphs, nodes, events, libraries, kernels: opaque pointers
ADDRESS = ctypes.c_uint64  # CUdeviceptr
_SIZE, _INT, _UINT = ctypes.c_size_t, ctypes.c_int, ctypes.c_uint
_OUT = ctypes.POINTER(HANDLE)

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
HOST, DEVICE = 1, 2  # CU_MEMORYTYPE_*
DEVICE_MAP = 2  # CU_MEMHOSTALLOC_DEVICEMAP
NOT_READY = 600  # CUDA_ERROR_NOT_READY
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may allocate while one captures
CONDITIONAL = 13  # CU_GRAPH_NODE_TYPE_CONDITIONAL
WHILE = 1  # CU_GRAPH_COND_TYPE_WHILE
OVERLAPS = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: begins before the launch before it has ended
FIRST_WITH_OVERLAP = 90  # compute capability that a kernel was compiled for, without the point
COMPILED_FOR = 5  # CU_FUNC_ATTRIBUTE_PTX_VERSION: that capability, also of code that the driver compiled from PTX
ASSIGN_DEFAULT = 1  # CU_GRAPH_COND_ASSIGN_DEFAULT: each launch of the graph sets the condition to its first value
FIRST_WITH_WHILE = 12040  # cuDriverGetVersion: CUDA 12.4


class RowCopy(ctypes.Structure):
    """CUDA_MEMCPY2D: copies the first `width` bytes of each of `height` rows."""

    _fields_ = (
        *(("src_x", _SIZE), ("src_y", _SIZE), ("src_type", _UINT), ("src_host", HANDLE)),
        *(("src_device", ADDRESS), ("src_array", HANDLE), ("src_pitch", _SIZE)),
        *(("dst_x", _SIZE), ("dst_y", _SIZE), ("dst_type", _UINT), ("dst_host", HANDLE)),
        *(("dst_device", ADDRESS), ("dst_array", HANDLE), ("dst_pitch", _SIZE)),
        *(("width", _SIZE), ("height", _SIZE)),
    )


class ConditionalNode(ctypes.Structure):
    """CUDA_CONDITIONAL_NODE_PARAMS."""

    _fields_ = (
        ("handle", ctypes.c_uint64),
        ("type", _INT),
        ("size", _UINT),
        ("graphs", ctypes.POINTER(HANDLE)),
        ("context", HANDLE),
    )


class _Parameters(ctypes.Union):
    _fields_ = (("reserved", ctypes.c_longlong * 29), ("conditional", ConditionalNode))


class NodeParameters(ctypes.Structure):
    """CUgraphNodeParams."""

    _fields_ = (
        ("type", _INT),
        ("reserved0", _INT * 3),
        ("of", _Parameters),
        ("reserved2", ctypes.c_longlong),
    )


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, of whose 64 bytes of values the first four are a number."""

    _fields_ = (("id", _INT), ("padding", _INT), ("value", _INT), ("reserved", _INT * 15))


class LaunchConfiguration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *(("grid", _UINT * 3), ("block", _UINT * 3), ("shared_bytes", _UINT), ("stream", HANDLE)),
        *(("attributes", ctypes.POINTER(LaunchAttribute)), ("n_attributes", _UINT)),
    )


Signatures = Mapping[str, tuple[Any, ...]]  # a function's name and the types of its arguments; all return a CUresult

MEMORY: Signatures = {
    "cuInit": (_UINT,),
    "cuGetErrorString": (_INT, ctypes.POINTER(ctypes.c_char_p)),
    "cuDriverGetVersion": (ctypes.POINTER(_INT),),
    "cuDeviceGetCount": (ctypes.POINTER(_INT),),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (_OUT, _INT),
    "cuCtxSetCurrent": (HANDLE,),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemAlloc_v2": (ctypes.POINTER(ADDRESS), _SIZE),
    "cuMemFree_v2": (ADDRESS,),
    "cuMemHostAlloc": (_OUT, _SIZE, _UINT),
    "cuMemFreeHost": (HANDLE,),
    "cuMemcpyHtoDAsync_v2": (ADDRESS, HANDLE, _SIZE, HANDLE),
    "cuMemcpyDtoHAsync_v2": (HANDLE, ADDRESS, _SIZE, HANDLE),
    "cuMemcpyDtoDAsync_v2": (ADDRESS, ADDRESS, _SIZE, HANDLE),
    "cuMemcpy2DAsync_v2": (ctypes.POINTER(RowCopy), HANDLE),
    "cuMemsetD8Async": (ADDRESS, ctypes.c_ubyte, _SIZE, HANDLE),
    "cuStreamCreate": (_OUT, _UINT),
    "cuStreamDestroy_v2": (HANDLE,),
    "cuStreamSynchronize": (HANDLE,),
}
KERNELS: Signatures = {
    "cuLibraryLoadData": (_OUT, ctypes.c_char_p, HANDLE, HANDLE, _UINT, HANDLE, HANDLE, _UINT),
    "cuLibraryGetKernel": (_OUT, HANDLE, ctypes.c_char_p),
    "cuKernelGetFunction": (_OUT, HANDLE),
    "cuLaunchKernel": (HANDLE, *(_UINT,) * 7, HANDLE, ctypes.POINTER(HANDLE), HANDLE),
}
# Drivers since CUDA 11.8 have it.
EXTENDED_LAUNCH: Signatures = {
    "cuLaunchKernelEx": (ctypes.POINTER(LaunchConfiguration), HANDLE, ctypes.POINTER(HANDLE), HANDLE),
    "cuFuncGetAttribute": (ctypes.POINTER(_INT), _INT, HANDLE),
}
GRAPHS: Signatures = {
    "cuMemHostGetDevicePointer_v2": (ctypes.POINTER(ADDRESS), HANDLE, _UINT),
    "cuStreamQuery": (HANDLE,),
    "cuStreamBeginCapture_v2": (HANDLE, _INT),
    "cuStreamEndCapture": (HANDLE, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (HANDLE, HANDLE),
    "cuGraphExecDestroy": (HANDLE,),
    "cuGraphDestroy": (HANDLE,),
    "cuGraphCreate": (_OUT, _UINT),
    "cuEventCreate": (_OUT, _UINT),
    "cuEventRecord": (HANDLE, HANDLE),
    "cuEventDestroy_v2": (HANDLE,),
}
# Only drivers that know WHILE nodes have these.
WHILE_NODES: Signatures = {
    "cuGraphConditionalHandleCreate": (ctypes.POINTER(ctypes.c_uint64), HANDLE, HANDLE, _UINT, _UINT),
    "cuGraphAddNode_v2": (_OUT, HANDLE, HANDLE, HANDLE, _SIZE, ctypes.POINTER(NodeParameters)),
    "cuStreamBeginCaptureToGraph": (HANDLE, HANDLE, HANDLE, HANDLE, _SIZE, _INT),
}
# The newer name is there since CUDA 12.8.
ELAPSED_TIME = ("cuEventElapsedTime_v2", "cuEventElapsedTime")
FUNCTIONS: Signatures = {
    **MEMORY, **KERNELS, **EXTENDED_LAUNCH, **GRAPHS, **WHILE_NODES,
    **dict.fromkeys(ELAPSED_TIME, (ctypes.POINTER(ctypes.c_float), HANDLE, HANDLE)),
}  # fmt: skip


class Driver:
    """The driver's library at `path`. Opening it starts nothing.

    functions: the library, in which every function of the tables above that this driver has is given its types.
    Raises BackendUnavailable when there is no such library.
    """

    def __init__(self, path: str = LIBRARY) -> None:
        try:
            self.functions: Any = ctypes.CDLL(path)
        except OSError as error:
            raise BackendUnavailable(
                f"no CUDA driver on this machine ({path} can't be opened); expected NVIDIA's; install NVIDIA's driver, "
                "or use the CPU"
            ) from error
        for name, arguments in FUNCTIONS.items():
            function = getattr(self.functions, name, None)
            if function is not None:
                function.argtypes, function.restype = list(arguments), _INT

    def lacks(self, functions: Signatures) -> list[str]:
        """Those of `functions` that this driver doesn't have."""
        return [name for name in functions if not hasattr(self.functions, name)]

    def require(self, functions: Signatures) -> None:
        """Raises BackendUnavailable when the driver lacks one of `functions`: it is then older than CUDA 12."""
        if missing := self.lacks(functions):
            raise BackendUnavailable(
                f"this CUDA driver is too old (it has no {missing[0]}); expected one of CUDA 12 or later; "
                "update the driver"
            )

    def start(self) -> None:
        """Starts CUDA in this process; again does nothing. Raises BackendUnavailable where no GPU can be used."""
        self.require({"cuInit": ()})
        self.check(self.functions.cuInit(0), "cuInit", BackendUnavailable)

    @property
    def version(self) -> int:
        """The newest CUDA that the driver serves, as 1000 times the major version plus 10 times the minor one."""
        value = _INT()
        self.check(self.functions.cuDriverGetVersion(ctypes.byref(value)), "asking for the driver's version")
        return value.value

    @property
    def release(self) -> tuple[int, int]:
        """The same as major and minor version, such as (12, 4)."""
        version = self.version
        return version // 1000, version % 1000 // 10

    @property
    def cuda_version(self) -> str:
        """The same in words, such as "12.4"."""
        return "{}.{}".format(*self.release)

    @property
    def n_devices(self) -> int:
        count = _INT()
        self.check(self.functions.cuDeviceGetCount(ctypes.byref(count)), "counting GPUs")
        return count.value

    @property
    def knows_while_nodes(self) -> bool:
        return not self.lacks(WHILE_NODES) and self.version >= FIRST_WITH_WHILE

    def check(self, status: int, what: str, error: type[BackendError] = BackendError, device: str = "the GPU") -> None:
        """Raises `error` with the driver's text unless `status`, a CUresult, is success.

        what: what was tried, for the sentence "... failed". Raises DeviceLost, which names `device`, where no later
        call can succeed either.
        """
        if status == 0:
            return
        reason = self.describe(status)
        if status in faults.FATAL:
            raise faults.lost(device, what, status, reason)
        raise error(f"{what} failed with CUDA error {status} ({reason}); expected success; run s2s doctor")

    def describe(self, status: int) -> str:
        """The driver's text for a CUresult."""
        text = ctypes.c_char_p()
        self.functions.cuGetErrorString(status, ctypes.byref(text))
        return text.value.decode() if text.value else "no text"

    def elapsed_seconds(self, start: Any, end: Any) -> float:
        """The time between two recorded events, by the device's clock."""
        name = next(name for name in ELAPSED_TIME if hasattr(self.functions, name))
        milliseconds = ctypes.c_float()
        self.check(getattr(self.functions, name)(ctypes.byref(milliseconds), start, end), "reading the clock")
        return milliseconds.value / 1000


@functools.cache
def driver() -> Driver:
    """The process's driver, opened at the first call. Raises BackendUnavailable without one, or for one too old."""
    found = Driver(LIBRARY)
    found.require(MEMORY)
    return found
