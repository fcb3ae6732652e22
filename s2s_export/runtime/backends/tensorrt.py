"""TensorRT: runs the engine that `s2s build` made for this GPU."""

from __future__ import annotations

from ._tensorrt.backend import declaration

BACKEND = declaration("tensorrt", preference=10)
