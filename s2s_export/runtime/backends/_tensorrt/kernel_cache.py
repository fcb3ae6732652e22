"""How TensorRT-RTX runs an engine, and the kernels that it compiled for this GPU, kept for the next process.

An RTX engine works on several GPUs. Its kernels are compiled for the actual GPU when it first runs, which takes
seconds. The library returns the compiled kernels as bytes, and checks bytes that it is given before it uses them, so a
stale file does no harm. Files lie in `$XDG_CACHE_HOME/s2s_export/kernels` or `~/.cache/...`. A folder that can't be
written is no error: the next process compiles again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any


def folder() -> Path:
    """Where the files lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s2s_export" / "kernels"


def runtime_config(engine: Any, file: Path) -> tuple[Any, Any]:
    """The runtime configuration of an engine, and its cache of kernels with what `file` has; None where the library has
    neither (full TensorRT has no cache).

    Set for captures into CUDA graphs: kernels for a shape are compiled before its first launch (EAGER; with the default
    a graph would keep the slow fallback kernel that was there when it was captured), and the memory for activations is
    the caller's, since nothing may be allocated during a capture.
    """
    if not hasattr(engine, "create_runtime_config"):
        return None, None
    config = engine.create_runtime_config()
    if not hasattr(config, "create_runtime_cache"):
        return config, None
    if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
        strategy = config.dynamic_shapes_kernel_specialization_strategy
        config.dynamic_shapes_kernel_specialization_strategy = type(strategy).EAGER
    if hasattr(config, "set_execution_context_allocation_strategy"):
        allocation = config.get_execution_context_allocation_strategy()
        config.set_execution_context_allocation_strategy(type(allocation).USER_MANAGED)
    cache = config.create_runtime_cache()
    with contextlib.suppress(OSError):
        cache.deserialize(file.read_bytes())
    config.set_runtime_cache(cache)
    return config, cache


def is_user_managed(config: Any) -> bool:
    """Whether contexts made with this configuration are given their memory by the caller."""
    if config is None or not hasattr(config, "get_execution_context_allocation_strategy"):
        return False
    strategy = config.get_execution_context_allocation_strategy()
    return bool(strategy == type(strategy).USER_MANAGED)


def save(caches: dict[Path, Any]) -> None:
    """Write the caches to their files. Each file appears whole or not at all."""
    for file, cache in caches.items():
        with contextlib.suppress(OSError):
            data = bytes(cache.serialize())
            if file.is_file() and file.stat().st_size == len(data):
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
            with os.fdopen(handle, "wb") as opened:
                opened.write(data)
            os.replace(temporary, file)
