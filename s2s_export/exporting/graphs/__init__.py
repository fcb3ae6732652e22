"""Model structure -> the three ONNX graphs. Runs at export only; needs onnx, and torch for the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def emitter_of(structure: Any) -> Callable[..., dict[str, Any]]:
    """The function that emits the graphs of a structure: `emit(structure, store)`, in the structure's own module."""
    from importlib import import_module

    return import_module(structure.EMITTER, __name__).emit
