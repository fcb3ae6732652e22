"""Nodes `CrossAttention` and `CrossAttentionBias`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from ..common.nodes import Launch, Operation, Tensor, block_threads, width


class Parameters(ctypes.Structure):
    """Mirrors parameters.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "mask", "bias", "output")),
        *((name, ctypes.c_int32) for name in ("sources", "heads", "beams", "head_size", "length")),
        ("scale", ctypes.c_float),
    )


def rows(beams: int) -> int:
    """Query rows that one block takes: the least power of two that holds all beams, at most 8."""
    return next((n for n in (1, 2, 4) if beams <= n), 8)


def plan(element: str, sizes: Mapping[str, int]) -> Launch:
    taken = rows(sizes["K"])
    kernel = f"cross_attention_{element}_w{width(sizes['D'])}_r{taken}"
    return Launch(kernel, (-(-sizes["K"] // taken), sizes["H"], sizes["B"]), block_threads(sizes["S"]))


ROW = ("B", "H", "K", "D")
STATES = ("B", "H", "S", "D")
INPUTS = (
    Tensor("query", ROW),
    Tensor("key", STATES),
    Tensor("value", STATES),
    Tensor("mask", ("B", 1, 1, "S")),
)


def _operation(name: str, inputs: tuple[Tensor, ...]) -> Operation:
    return Operation(
        name=name,
        folder="cross_attention",
        inputs=inputs,
        outputs=(Tensor("output", ROW),),
        parameters=Parameters,
        size_fields={"B": "sources", "H": "heads", "K": "beams", "D": "head_size", "S": "length"},
        plan=plan,
    )


OPERATIONS = (
    _operation("CrossAttention", INPUTS),
    _operation("CrossAttentionBias", (*INPUTS, Tensor("bias", (1, "H", 1, "S")))),
)
