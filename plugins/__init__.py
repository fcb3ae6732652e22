"""Kernels for decoder steps, and the plugins through which TensorRT runs them.

A folder with an `operation.py` is a plugin: it is found by being there. Each holds its kernel, a launcher with a plain
C interface, a numpy reference, tolerances and a README. `common/` is what they share, `glue/` what TensorRT asks for,
`build.py` compiles.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .common.nodes import Operation


def folders() -> list[str]:
    """Names of the plugin folders, sorted."""
    return sorted(path.parent.name for path in Path(__file__).resolve().parent.glob("*/operation.py"))


def operations() -> dict[str, Operation]:
    """Every operation of every folder, by its ONNX operator name."""
    found: dict[str, Operation] = {}
    for folder in folders():
        for operation in importlib.import_module(f"{__name__}.{folder}.operation").OPERATIONS:
            found[operation.name] = operation
    return found
