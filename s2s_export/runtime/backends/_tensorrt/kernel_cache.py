"""Kernels that TensorRT-RTX finished for this GPU, kept for the next process.

An RTX engine is good for several GPUs; what it still lacks is compiled when it first runs, which takes seconds. The
library offers the result as a blob and checks a blob itself before it takes it, so that a stale one costs nothing.
Blobs lie in `$XDG_CACHE_HOME/s2s_export/kernels` or `~/.cache/...`; a folder that can't be written is no error.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s2s_export" / "kernels"


def attach(engine: Any, file: Path) -> tuple[Any, Any]:
    """The runtime configuration of an engine and its cache, filled with what was kept in `file`; None where the library
    has neither."""
    if not hasattr(engine, "create_runtime_config"):
        return None, None
    config = engine.create_runtime_config()
    if not hasattr(config, "create_runtime_cache"):
        return config, None
    cache = config.create_runtime_cache()
    with contextlib.suppress(OSError):
        cache.deserialize(file.read_bytes())
    config.set_runtime_cache(cache)
    return config, cache


def keep(caches: dict[Path, Any]) -> None:
    """Write what was finished, by file; each appears whole."""
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
