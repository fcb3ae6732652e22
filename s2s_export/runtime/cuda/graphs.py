"""The driver's functions for graphs, and the one structure that a WHILE node needs, as ctypes.

Layouts and constants are those of cuda.h; a test compiles them against it.
"""

from __future__ import annotations

import ctypes
from typing import Any

HANDLE = ctypes.c_void_p
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may allocate while one captures
CONDITIONAL = 13  # CU_GRAPH_NODE_TYPE_CONDITIONAL
WHILE = 1  # CU_GRAPH_COND_TYPE_WHILE
ASSIGN_DEFAULT = 1  # CU_GRAPH_COND_ASSIGN_DEFAULT: the condition starts anew with every launch
DEVICE_MAP = 2  # CU_MEMHOSTALLOC_DEVICEMAP
NOT_READY = 600  # CUDA_ERROR_NOT_READY
FIRST_WITH_WHILE = 12040  # cuDriverGetVersion: CUDA 12.4


class ConditionalNode(ctypes.Structure):
    """CUDA_CONDITIONAL_NODE_PARAMS."""

    _fields_ = (
        ("handle", ctypes.c_uint64),
        ("type", ctypes.c_int),
        ("size", ctypes.c_uint),
        ("graphs", ctypes.POINTER(HANDLE)),
        ("context", HANDLE),
    )


class _Parameters(ctypes.Union):
    _fields_ = (("reserved", ctypes.c_longlong * 29), ("conditional", ConditionalNode))


class NodeParameters(ctypes.Structure):
    """CUgraphNodeParams."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("reserved0", ctypes.c_int * 3),
        ("of", _Parameters),
        ("reserved2", ctypes.c_longlong),
    )


_OUT = ctypes.POINTER(HANDLE)
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuMemHostGetDevicePointer_v2": (ctypes.POINTER(ctypes.c_uint64), HANDLE, ctypes.c_uint),
    "cuStreamQuery": (HANDLE,),
    "cuStreamBeginCapture_v2": (HANDLE, ctypes.c_int),
    "cuStreamEndCapture": (HANDLE, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (HANDLE, HANDLE),
    "cuGraphExecDestroy": (HANDLE,),
    "cuGraphDestroy": (HANDLE,),
    "cuGraphCreate": (_OUT, ctypes.c_uint),
    "cuLibraryLoadData": (
        *(_OUT, ctypes.c_char_p),
        *(HANDLE, HANDLE, ctypes.c_uint, HANDLE, HANDLE, ctypes.c_uint),
    ),
    "cuLibraryGetKernel": (_OUT, HANDLE, ctypes.c_char_p),
    "cuKernelGetFunction": (_OUT, HANDLE),
    "cuLaunchKernel": (HANDLE, *(ctypes.c_uint,) * 7, HANDLE, ctypes.POINTER(HANDLE), HANDLE),
    "cuEventCreate": (_OUT, ctypes.c_uint),
    "cuEventRecord": (HANDLE, HANDLE),
    "cuEventDestroy_v2": (HANDLE,),
}
# Only drivers that know WHILE nodes have these.
WHILE_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuGraphConditionalHandleCreate": (
        ctypes.POINTER(ctypes.c_uint64),
        HANDLE,
        HANDLE,
        ctypes.c_uint,
        ctypes.c_uint,
    ),
    "cuGraphAddNode_v2": (_OUT, HANDLE, HANDLE, HANDLE, ctypes.c_size_t, ctypes.POINTER(NodeParameters)),
    "cuStreamBeginCaptureToGraph": (HANDLE, HANDLE, HANDLE, HANDLE, ctypes.c_size_t, ctypes.c_int),
}


def elapsed_time(driver: Any) -> Any:
    """cuEventElapsedTime, whose newer form has another name since CUDA 12.8."""
    function = getattr(driver, "cuEventElapsedTime_v2", None) or driver.cuEventElapsedTime
    function.argtypes, function.restype = [ctypes.POINTER(ctypes.c_float), HANDLE, HANDLE], ctypes.c_int
    return function


def declare(driver: Any) -> bool:
    """Gives the functions their types. Returns whether the driver knows WHILE nodes. Raises AttributeError for an old
    driver."""
    for name, arguments in FUNCTIONS.items():
        function = getattr(driver, name)
        function.argtypes, function.restype = list(arguments), ctypes.c_int
    for name, arguments in WHILE_FUNCTIONS.items():
        found = getattr(driver, name, None)
        if found is None:
            return False
        found.argtypes, found.restype = list(arguments), ctypes.c_int
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value >= FIRST_WITH_WHILE
