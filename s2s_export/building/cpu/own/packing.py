"""Weights in the layout that the operators of plugins/cpu read: blocks of 16 outputs. Letters: O outputs, I inputs.

    float32   [O,I] -> [O/16, I, 16]
    int8      [O,I] -> [O/16, I/4, 16, 4]

Outputs are padded with zeros to whole blocks, and the inputs of int8 weights to a multiple of 4. The blocks of a large
weight are stored in the order in which they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graphs.graph import Graph
from ..onnxruntime.products import scale_of

LANES = 16
FOUR = 4


@dataclass
class Packed:
    """A weight's arrays by the suffix of their names: "" for the values; int8 also has "scale" [O] and "sum" [O]."""

    arrays: dict[str, NDArray[Any]]
    n_out: int
    n_in: int


@dataclass
class Store:
    """Packs each weight once, also if several graphs share it. is_int8: whether all weights become int8."""

    is_int8: bool
    found: dict[Any, Packed] = field(default_factory=dict)
    added: dict[tuple[int, int], list[str]] = field(default_factory=dict)  # names by graph and packed weight

    def get(self, graph: Graph, name: str, is_transposed: bool) -> Packed:
        """is_transposed: whether the graph's weight is [O,I] and not [I,O]."""
        array = graph.weights[name]
        key = (graph.places.get(name) or id(array), array.shape, is_transposed)
        if key not in self.found:
            weight = np.asarray(array if is_transposed else array.T, dtype=np.float32)
            self.found[key] = to_int8(weight) if self.is_int8 else to_floats(weight)
        return self.found[key]

    def add(self, graph: Graph, name: str, is_transposed: bool = True) -> tuple[list[str], Packed]:
        """Add a packed weight to the graph, once. Returns its arrays' names in the order of an operator's inputs."""
        packed = self.get(graph, name, is_transposed)
        key = (id(graph), id(packed))
        if key not in self.added:
            self.added[key] = [f"{name}/packed{part and '_' + part}" for part in packed.arrays]
            graph.weights |= dict(zip(self.added[key], packed.arrays.values(), strict=True))
        return self.added[key], packed


def to_floats(weight: NDArray[np.float32]) -> Packed:
    """[O,I] float32."""
    n_out, n_in = weight.shape
    blocks = filled(weight, LANES).reshape(-1, LANES, n_in)
    return Packed({"": np.ascontiguousarray(blocks.transpose(0, 2, 1))}, n_out, n_in)


def to_int8(weight: NDArray[np.float32]) -> Packed:
    """[O,I] float32 -> int8, symmetric, with a scale for each output."""
    n_out, n_in = weight.shape
    scale = scale_of(np.abs(weight).max(axis=1), 8)
    values = np.rint(weight / scale[:, None]).astype(np.int8)
    wide = np.zeros((n_out, -(-n_in // FOUR) * FOUR), np.int8)
    wide[:, :n_in] = values
    blocks = filled(wide, LANES).reshape(-1, LANES, wide.shape[1] // FOUR, FOUR)
    sums = values.sum(axis=1, dtype=np.int32)
    arrays = {
        "": np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)),
        "scale": filled(scale, LANES),
        "sum": filled(sums, LANES),
    }
    return Packed(arrays, n_out, n_in)


def filled(array: NDArray[Any], multiple: int) -> NDArray[Any]:
    """The array, with zeros added at the end of its rows up to a multiple."""
    more = -len(array) % multiple
    return np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)]) if more else array
