"""What both kinds of packed models are made of: where tensors lie, products, and what is checked of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

BYTES = {"fp16": 2, "bf16": 2, "int8": 1}
LAYOUT_BYTES = {"fragments": 2, "bytes": 1, "floats": 4}
TILE = 16  # widths are multiples of it


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in weights.bin."""

    offset: int
    layout: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Linear:
    """weight [O, I], bias [O] fp32 or None. scale [O]: of a weight of 8 bits, else None."""

    weight: str
    scale: str | None
    bias: str | None
    outputs: int
    inputs: int


class Wrong(Exception):
    """What is wrong with a document, in the middle of a sentence."""


Wanted = tuple[str | None, tuple[int, ...], str]  # a tensor's name, shape and layout


def n_bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape)) * LAYOUT_BYTES[tensor.layout]


def weight_bytes(linears: list[Linear], element: str) -> int:
    return sum(one.outputs * one.inputs for one in linears) * BYTES[element]


def layout_of(element: str) -> str:
    """Of weights."""
    return "bytes" if element == "int8" else "fragments"


def of_linear(linear: Linear, outputs: int, inputs: int, layout: str) -> Iterator[Wanted]:
    if (linear.outputs, linear.inputs) != (outputs, inputs):
        raise Wrong(f"{linear.weight} is [{linear.outputs}, {linear.inputs}], expected [{outputs}, {inputs}]")
    yield linear.weight, (outputs, inputs), layout
    if layout == "bytes":
        yield linear.scale, (outputs,), "floats"
    if linear.bias is not None:
        yield linear.bias, (outputs,), "floats"


def of_embedding(name: str | None, scales: str | None, vocabulary: int, width: int, layout: str) -> Iterator[Wanted]:
    rows = -(-vocabulary // TILE) * TILE
    yield name, (rows, width), layout
    if layout == "bytes":
        yield scales, (rows,), "floats"


Tensors = Mapping[str, Tensor]
