"""Weights in the layout that the operators of plugins/cpu read: blocks of 16 outputs. Letters: O outputs, I inputs.

    fp32, fp16, bf16   [O,I] -> [O/16, I, 16]
    int8               [O,I] -> [O/16, I/4, 16, 4]

Outputs are padded with zeros to whole blocks, and the inputs of int8 weights to a multiple of 4. The blocks of a large
weight are stored in the order in which they are read. sixteen.py says which floats are stored in 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graphs.graph import Graph
from ..onnxruntime.products import scale_of
from . import sixteen

LANES = 16
FOUR = 4
FP32, INT8 = "fp32", "int8"
SUFFIXES = {FP32: "", INT8: "Int8", sixteen.FP16: "Fp16", sixteen.BF16: "Bf16"}  # of the operators' names


@dataclass
class Packed:
    """A weight's arrays by the suffix of their names: "" for the values; int8 also has "scale" [O] and "sum" [O].

    storage: fp32, int8, fp16 or bf16. Numbers of 16 bits are held as uint16. is_exact: whether no value was rounded.
    """

    arrays: dict[str, NDArray[Any]]
    n_out: int
    n_in: int
    storage: str = FP32
    is_exact: bool = True

    def operator(self, name: str) -> str:
        """The operator `name` for a weight that is stored so."""
        return name + SUFFIXES[self.storage]


@dataclass
class Store:
    """Packs each weight once, also if several graphs share it.

    precision: fp32 rounds no value; fp16 and bf16 round those of weights that neither holds exactly; int8 rounds all.
    narrows: whether weights that 16 bits hold are stored so.
    """

    precision: str
    narrows: bool = True
    found: dict[Any, Packed] = field(default_factory=dict)
    added: dict[tuple[int, int], list[str]] = field(default_factory=dict)  # names by graph and packed weight
    names: dict[int, str] = field(default_factory=dict)  # in the first graph that has it, by packed weight

    def get(self, graph: Graph, name: str, is_transposed: bool, precision: str | None = None) -> Packed:
        """is_transposed: whether the graph's weight is [O,I] and not [I,O]. precision: of this weight, where it is not
        that of all.
        """
        array = graph.weights[name]
        chosen = precision or self.precision
        key = (graph.places.get(name) or id(array), array.shape, is_transposed, chosen)
        if key not in self.found:
            weight = np.asarray(array if is_transposed else array.T, dtype=np.float32)
            is_int8 = chosen == INT8
            self.found[key] = to_int8(weight) if is_int8 else to_floats(weight, chosen, narrows=self.narrows)
            self.names[id(self.found[key])] = name
        return self.found[key]

    def add(
        self, graph: Graph, name: str, is_transposed: bool = True, precision: str | None = None
    ) -> tuple[list[str], Packed]:
        """Add a packed weight to the graph, once. Returns its arrays' names in the order of an operator's inputs."""
        packed = self.get(graph, name, is_transposed, precision)
        key = (id(graph), id(packed))
        if key not in self.added:
            self.added[key] = [f"{name}/packed{part and '_' + part}" for part in packed.arrays]
            graph.weights |= dict(zip(self.added[key], packed.arrays.values(), strict=True))
        return self.added[key], packed

    def stored(self) -> dict[str, dict[str, Any]]:
        """What engine.json records (engines.py), by the type in which weights are stored."""
        found: dict[str, dict[str, Any]] = {}
        for packed in self.found.values():
            of_type = found.setdefault(packed.storage, {"weights": 0, "bytes": 0, "rounded": 0, "names": []})
            of_type["weights"] += 1
            of_type["bytes"] += sum(array.nbytes for array in packed.arrays.values())
            of_type["rounded"] += not packed.is_exact
            of_type["names"].append(self.names[id(packed)])
        return found


def to_floats(weight: NDArray[np.float32], precision: str = FP32, *, narrows: bool = False) -> Packed:
    """[O,I] float32 as it is, or if it `narrows` in 16 bits where sixteen.py says so."""
    n_out, n_in = weight.shape
    stored = sixteen.stores(weight, precision) if narrows else None
    storage, values, is_exact = stored or (FP32, weight, True)
    blocks = filled(values, LANES).reshape(-1, LANES, n_in)
    return Packed({"": np.ascontiguousarray(blocks.transpose(0, 2, 1))}, n_out, n_in, storage, is_exact)


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
    return Packed(arrays, n_out, n_in, INT8, is_exact=False)


def filled(array: NDArray[Any], multiple: int) -> NDArray[Any]:
    """The array, with zeros added at the end of its rows up to a multiple."""
    more = -len(array) % multiple
    return np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)]) if more else array
