"""Describes this machine, for `s2s doctor` and for the records of measurements."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from .. import plugin_sources
from ..errors import BackendError, BackendUnavailable
from ..runtime import backends, native_search
from ..runtime.cores import available_cores
from ..runtime.cuda import cublaslt, libcuda
from ..version import __version__

PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "sentencepiece", "onnx", "torch", "transformers",
    "tensorrt", "tensorrt-rtx-cu13", "ctranslate2", "optimum-onnx",
)  # fmt: skip


def describe(bundle: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The machine, the versions of important packages, for each backend None or the reason why it does not work, and
    where its search runs; native_search: None, or why there is no search in C++; matrix_library: in one sentence,
    what computes encoders' products on a GPU. With a bundle, also the memory that
    its engines for GPUs take; joined_batches: for each of its engines None, or why sources can't join batches; weights:
    for each that says it, in which types its weights are stored."""
    known = backends.declared()
    found = {
        "machine": machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": {name: backend.unavailable() or backend.broken() for name, backend in known.items()},
        "searches": {name: backend.search for name, backend in known.items()},
        "native_search": native_search.NativeSearches().why_python or None,
        "matrix_library": cublaslt.report(),
        "preference": [backend.name for backend in backends.by_preference()],
    }
    return found if bundle is None else {**found, **_of_bundle(bundle)}


def _of_bundle(path: str | os.PathLike[str]) -> dict[str, Any]:
    from ..bundle import read
    from ..engines import engines, weights_line
    from ..runtime.cuda import driver
    from . import gpu_memory, joined_batches

    opened = read(path, verify=False)
    reason = driver.unavailable()
    free = reason or f"{driver.device().name}, {driver.device().free_bytes / 2**20:.0f} MiB free"
    built = engines(opened)
    return {
        "gpu_memory": free,
        "memory_on_gpu": gpu_memory.of_bundle(opened, built),
        "joined_batches": joined_batches.of_bundle(path),
        "weights": {name: line for name, engine in built.items() if (line := weights_line(engine))},
    }


def machine() -> dict[str, Any]:
    return {
        "s2s-export": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "kernels": _kernels(),
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


def _kernels() -> str:
    """The instruction set that our own kernels for a CPU run with here; compiles nothing."""
    maker = plugin_sources.module("cpu.build")
    if (library := maker.made()) is None:
        return "not compiled yet; the first engine for a CPU has them compiled"
    try:
        chosen, why_not_amx = maker.instruction_set(library), maker.why_not_amx(library)
    except OSError as error:
        return f"can't be loaded ({error}); delete {library} and it is compiled again"
    return chosen if why_not_amx is None else f"{chosen}; not amx: {why_not_amx}"


def _memory() -> int:
    """Bytes of physical memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def cuda_driver() -> str | None:
    """The CUDA version of the driver and the number of GPUs, or None without a driver."""
    try:
        driver = libcuda.driver()
    except BackendUnavailable:
        return None
    try:
        driver.start()
    except BackendError:
        return "a CUDA driver, but no GPU that it can use"
    return f"{driver.n_devices} GPU(s), CUDA {driver.cuda_version}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
