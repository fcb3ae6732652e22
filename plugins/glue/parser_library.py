"""The library link without which TensorRT-RTX's ONNX parser ends the process.

When the parser meets a plugin it opens `libtensorrt_rtx.so`. The wheel brings that library as `libtensorrt_rtx.so.1`
only, the parser does not catch the failure, and the process dies with "terminate called without an active exception".
So this is looked at before any plugin is parsed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from types import ModuleType

from s2s_export.errors import BackendUnavailable

LIBRARY = "libtensorrt_rtx.so"


def ensure_parser_can_load_plugins(trt: ModuleType, repair: bool = True) -> str | None:
    """Makes sure that parsing a plugin node can't abort. Call it before the parser sees one.

    trt: the module tensorrt or tensorrt_rtx. repair: add the missing link beside the wheel's library.
    Returns what was changed, in a sentence to show; None when nothing had to be. Raises BackendUnavailable, with the
    command that mends it, when the link is missing and can't be or shall not be made.
    """
    if not is_rtx(trt):
        return None
    folder = wheel_libraries()
    if folder is None:
        return _require_system_library()
    link = folder / LIBRARY
    if link.exists():
        return None
    library = max(folder.glob(f"{LIBRARY}.*"), key=lambda path: path.name, default=None)
    if library is None:
        raise BackendUnavailable(
            f"{folder} has no {LIBRARY}.*; expected TensorRT-RTX's library there; "
            "run: pip install --force-reinstall tensorrt-rtx-cu13"
        )
    command = f"ln -s {library.name} {link}"
    if not repair:
        raise BackendUnavailable(f"{link} is missing, and the ONNX parser aborts without it on plugins; run: {command}")
    try:
        if link.is_symlink():  # left over from another version
            link.unlink()
        os.symlink(library.name, link)
    except FileExistsError:
        return None  # another process was faster
    except OSError as problem:
        raise BackendUnavailable(
            f"{link} is missing, the ONNX parser aborts without it on plugins, and it can't be made here "
            f"({problem.strerror}); run, with the rights for that folder: {command}"
        ) from problem
    return f"added the link {link}, which the ONNX parser needs for plugins"


def is_rtx(trt: ModuleType) -> bool:
    """TensorRT-RTX and not TensorRT: it alone chooses compute capabilities ahead of time."""
    return hasattr(trt, "ComputeCapability")


def wheel_libraries() -> Path | None:
    """The folder of the wheel's libraries; None when TensorRT-RTX was installed some other way."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _require_system_library() -> None:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as problem:
        raise BackendUnavailable(
            f"{LIBRARY} can't be opened ({problem}), and the ONNX parser aborts without it on plugins; "
            "add its folder to LD_LIBRARY_PATH"
        ) from problem
