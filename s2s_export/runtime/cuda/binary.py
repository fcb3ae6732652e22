"""Compiled kernels, loaded into the driver and launched by name."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

from ...errors import BackendUnavailable
from .interface import Launch, Queued
from .libcuda import (
    COMPILED_FOR,
    EXTENDED_LAUNCH,
    FIRST_WITH_OVERLAP,
    HANDLE,
    KERNELS,
    OVERLAPS,
    Driver,
    LaunchAttribute,
    LaunchConfiguration,
)

# What loading a binary says when the driver is older than the compiler: the PTX's version is not supported, there is no
# image for this GPU, or the image can't be read.
TOO_OLD = frozenset({222, 209, 200, 218})


class LoadedBinary:
    """The kernels of a fatbin, cubin or PTX. Safe to use from several threads, and good for each of CUDA's contexts.

    name: of the binary, for messages. device: the GPU's name, for the message that it was lost. overlaps: whether a
    launch may begin before the last one has ended, where a kernel was compiled for GPUs that can do that.
    Raises BackendUnavailable where the driver is too old for the binary.
    """

    def __init__(self, driver: Driver, data: bytes, name: str, device: str = "the GPU", overlaps: bool = False) -> None:
        driver.require(KERNELS)
        self._overlaps = overlaps and not driver.lacks(EXTENDED_LAUNCH)
        self._driver = driver
        self._name = name
        self._device = device
        self._kernels: dict[str, Any] = {}
        self._early: set[str] = set()  # of these, those that wait for the launch before them
        self._lock = threading.Lock()
        self._library = HANDLE()
        status = driver.functions.cuLibraryLoadData(ctypes.byref(self._library), data, None, None, 0, None, None, 0)
        self._check_loaded(status, f"loading {name}")

    def find(self, kernel: str) -> Any:
        """A kernel's handle. Raises BackendUnavailable or BackendError: a driver that loads lazily looks into a binary
        only when one of its kernels is asked for."""
        with self._lock:
            found = self._kernels.get(kernel)
            if found is None:
                found, function = HANDLE(), HANDLE()
                cu = self._driver.functions
                status = cu.cuLibraryGetKernel(ctypes.byref(found), self._library, kernel.encode())
                status = status or cu.cuKernelGetFunction(ctypes.byref(function), found)
                self._check_loaded(status, f"finding the kernel {kernel}")
                if self._overlaps and self._waits(function):
                    self._early.add(kernel)
                self._kernels[kernel] = found
        return found

    def run(self, launch: Launch, argument: ctypes.Structure, stream: int) -> None:
        """Queues a kernel whose only argument is `argument`, which the driver copies before it returns."""
        kernel = self._kernels.get(launch.kernel) or self.find(launch.kernel)
        arguments = (HANDLE * 1)(ctypes.addressof(argument))
        status = self._driver.functions.cuLaunchKernel(
            kernel, *launch.grid, launch.threads, 1, 1, 0, stream, arguments, None
        )
        self._driver.check(status, f"launching {launch.kernel}", device=self._device)

    def run_chain(self, queued: Sequence[Queued], stream: int) -> None:
        """See `interface.Kernels`."""
        for number, (launch, argument) in enumerate(queued):
            kernel = self._kernels.get(launch.kernel) or self.find(launch.kernel)
            if number and launch.kernel in self._early:
                self._run_early(kernel, launch, argument, stream)
            else:
                self.run(launch, argument, stream)

    def _waits(self, function: Any) -> bool:
        """Whether a kernel waits for the one before it: code for older GPUs, and what a driver compiles from PTX for
        those, has no instruction for that."""
        compiled_for = ctypes.c_int()
        status = self._driver.functions.cuFuncGetAttribute(ctypes.byref(compiled_for), COMPILED_FOR, function)
        self._driver.check(status, "asking for a kernel's architecture", device=self._device)
        return compiled_for.value >= FIRST_WITH_OVERLAP

    def _run_early(self, kernel: Any, launch: Launch, argument: ctypes.Structure, stream: int) -> None:
        """As `run`; the kernel may begin before the one before it in the stream has ended."""
        attribute = LaunchAttribute(id=OVERLAPS, value=1)
        configuration = LaunchConfiguration(
            launch.grid, (launch.threads, 1, 1), 0, stream, ctypes.pointer(attribute), 1
        )
        arguments = (HANDLE * 1)(ctypes.addressof(argument))
        status = self._driver.functions.cuLaunchKernelEx(ctypes.byref(configuration), kernel, arguments, None)
        self._driver.check(status, f"launching {launch.kernel}", device=self._device)

    def _check_loaded(self, status: int, what: str) -> None:
        if status in TOO_OLD:
            raise BackendUnavailable(
                f"the driver is of CUDA {self._driver.cuda_version} and can't load {self._name} (error {status}, "
                f"{self._driver.describe(status)}); expected at least the version of the nvcc that made it; update the "
                "driver, or build with an older nvcc"
            )
        self._driver.check(status, what, device=self._device)
