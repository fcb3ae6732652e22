"""Nodes `BeamSelfAttention` and `BeamSelfAttentionBias`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from ..common.nodes import Launch, Operation, Tensor, block_threads, width


class Parameters(ctypes.Structure):
    """Mirrors parameters.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "key_cache", "value_cache", "bias")),
        *((name, ctypes.c_void_p) for name in ("ancestors", "position", "output")),
        *((name, ctypes.c_int32) for name in ("sources", "heads", "beams", "head_size", "capacity")),
        ("scale", ctypes.c_float),
    )


def plan(element: str, sizes: Mapping[str, int]) -> Launch:
    kernel = f"beam_self_attention_{element}_w{width(sizes['D'])}"
    return Launch(kernel, (sizes["K"], sizes["H"], sizes["B"]), block_threads(sizes["C"]))


ROW = ("B", "H", "K", "D")
CACHE = ("B", "H", "N", "D")
INPUTS = (
    Tensor("query", ROW),
    Tensor("key", ROW),
    Tensor("value", ROW),
    Tensor("key_cache", CACHE),
    Tensor("value_cache", CACHE),
    Tensor("mask", ("B", 1, "K", "N")),
    Tensor("ancestors", ("B", "K", "C"), kind="int64"),
    Tensor("position", (1,), kind="int64"),
)
OUTPUTS = (
    Tensor("output", ROW),
    Tensor("key_cache_out", CACHE, aliases="key_cache"),
    Tensor("value_cache_out", CACHE, aliases="value_cache"),
)


def _operation(name: str, inputs: tuple[Tensor, ...]) -> Operation:
    return Operation(
        name=name,
        folder="beam_self_attention",
        inputs=inputs,
        outputs=OUTPUTS,
        parameters=Parameters,
        size_fields={"B": "sources", "H": "heads", "K": "beams", "D": "head_size", "C": "capacity"},
        plan=plan,
        unread=frozenset({"mask"}),
    )


OPERATIONS = (
    _operation("BeamSelfAttention", INPUTS),
    _operation("BeamSelfAttentionBias", (*INPUTS, Tensor("bias", (1, "H", 1, "C")))),
)
