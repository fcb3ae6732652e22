"""Describes this machine, for `s2s doctor` and for the records of measurements."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from typing import Any

from ..runtime import backends
from ..runtime.scheduling import available_cores
from ..version import __version__

PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "sentencepiece", "onnx", "torch", "transformers",
    "tensorrt", "tensorrt-rtx-cu13", "cuda-core", "cuda-bindings", "ctranslate2", "optimum-onnx",
)  # fmt: skip


def describe(bundle: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The machine, the versions of important packages, for each backend None or the reason why it does not work, and
    where its search runs. With a bundle, also the memory that its engines for GPUs take."""
    modules = backends.modules()
    found = {
        "machine": machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": {name: module.unavailable() for name, module in modules.items()},
        "searches": {name: module.SEARCH for name, module in modules.items() if hasattr(module, "SEARCH")},
        "preference": list(backends.PREFERENCE),
    }
    return found if bundle is None else {**found, **_memory_on_gpu(bundle)}


def _memory_on_gpu(path: str | os.PathLike[str]) -> dict[str, Any]:
    from ..bundle import read
    from ..engines import engines
    from ..runtime.cuda import driver
    from . import gpu_memory

    opened = read(path, verify=False)
    reason = driver.unavailable()
    free = reason or f"{driver.device().name}, {driver.device().free_bytes / 2**20:.0f} MiB free"
    return {"gpu_memory": free, "memory_on_gpu": gpu_memory.of_bundle(opened, engines(opened))}


def machine() -> dict[str, Any]:
    return {
        "s2s-export": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": available_cores(),
        "memory": f"{_memory() / 2**30:.1f} GiB",
        "gpu": cuda_driver() or "no CUDA driver",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith(("model name", "Model"))]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _memory() -> int:
    """Bytes of physical memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def cuda_driver() -> str | None:
    """The CUDA version of the driver and the number of GPUs, or None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0:
        return "a CUDA driver, but no GPU that it can use"
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    return f"{count.value} GPU(s), CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
