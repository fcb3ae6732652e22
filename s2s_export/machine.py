"""What this machine is and has, for `s2s doctor` and for the record of a measurement."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from typing import Any

from . import __version__, backends

PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "sentencepiece", "onnx", "torch", "transformers",
    "tensorrt", "tensorrt-rtx-cu13", "cuda-core", "cuda-bindings", "ctranslate2", "optimum-onnx",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """The machine, the versions of packages that matter, and for each backend None or why it does not work."""
    return {
        "machine": machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": {name: module.unavailable() for name, module in backends.modules().items()},
        "preference": list(backends.PREFERENCE),
    }


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


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    """The CUDA version that the driver serves and the number of GPUs, or None without a driver."""
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
