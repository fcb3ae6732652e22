"""TensorRT: runs the engine that `s2s build` made for this GPU."""

from __future__ import annotations

from ...bundle import Bundle
from ...errors import InvalidOption
from ._tensorrt import backend

NAME = "tensorrt"
SEARCH = backend.SEARCH


def unavailable() -> str | None:
    return backend.unavailable(NAME)


def unfit(bundle: Bundle, target: str | None) -> str | None:
    return backend.unfit(NAME, bundle, target)


def open(bundle: Bundle, target: str | None = None, threads: int | None = None) -> backend.TensorRTBackend:
    """threads: checked and not used; a GPU does the work."""
    if threads is not None and threads < 1:
        raise InvalidOption(f"threads is {threads}; expected at least 1")
    return backend.open_backend(NAME, NAME, bundle, target)
