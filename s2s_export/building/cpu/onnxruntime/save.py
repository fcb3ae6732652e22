"""Saves the graphs of an engine, and one file of weights for all of them unless they use the bundle's.

If all weights are the bundle's, unchanged, the graphs refer to the bundle's weights.bin and the engine has none.
Otherwise its weights.bin holds every distinct tensor once, even if it is read with different shapes (as an output
projection and as rows of the embedding).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ...graphs.graph import FLOAT, FLOATS, SMALL, Graph, element_type

ALIGNMENT = 4096  # bytes, one page: ONNX Runtime then maps a weight instead of copying it
NAME = "weights.bin"
LARGE = 1 << 20  # bytes; smaller weights are not worth sharing


def save(graphs: dict[str, Graph], folder: Path) -> tuple[str, dict[str, Any]]:
    """Write `<name>.onnx` of each graph into `folder`.

    Returns whose weights they use, "bundle" or "engine", and for each graph its large weights that another graph reads
    as well: offset, dtype and shape by name. A runtime can map these once for all graphs.
    """
    in_bundle = all(_place(graph, name) for graph in graphs.values() for name in _large(graph))
    if in_bundle:
        for name, graph in graphs.items():
            _write(graph, folder / f"{name}.onnx", lambda n, a, graph=graph: _place(graph, n))
        return "bundle", {}
    used: dict[str, dict[str, tuple[int, np.ndarray]]] = {name: {} for name in graphs}
    with (folder / NAME).open("wb") as file:
        places: dict[bytes, tuple[str, int, int]] = {}
        for name, graph in graphs.items():

            def place(weight: str, array: np.ndarray, name: str = name) -> tuple[str, int, int]:
                stored = _store(array, file, places)
                used[name][weight] = (stored[1], array)
                return stored

            _write(graph, folder / f"{name}.onnx", place)
    return "engine", _shared(used)


def _shared(used: dict[str, dict[str, tuple[int, np.ndarray]]]) -> dict[str, Any]:
    readers = Counter(offset for weights in used.values() for offset in {offset for offset, _ in weights.values()})
    return {
        name: {
            weight: {"offset": offset, "dtype": array.dtype.name, "shape": list(array.shape)}
            for weight, (offset, array) in weights.items()
            if readers[offset] > 1 and array.nbytes >= LARGE
        }
        for name, weights in used.items()
    }


def _large(graph: Graph) -> list[str]:
    return [name for name, array in graph.weights.items() if array.nbytes >= SMALL]


def _place(graph: Graph, name: str) -> tuple[str, int, int] | None:
    """Where the bundle's weights.bin has exactly this tensor in fp32, or None."""
    array = graph.weights[name]
    if name not in graph.places or (graph.types.get(name) in FLOATS and array.dtype != np.float32):
        return None
    location, _, offset = graph.places[name].rpartition("@")
    return location, int(offset), array.nbytes


def _store(array: np.ndarray, file: Any, places: dict[bytes, tuple[str, int, int]]) -> tuple[str, int, int]:
    raw = np.ascontiguousarray(array).data.cast("B")
    key = hashlib.sha256(raw).digest()
    if key not in places:
        file.write(bytes(-file.tell() % ALIGNMENT))
        places[key] = (NAME, file.tell(), raw.nbytes)
        file.write(raw)
    return places[key]


def _write(graph: Graph, path: Path, place_of: Any) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for name, array in graph.weights.items():
        if graph.types.get(name) == FLOAT and array.dtype != np.float32:
            array = array.astype(np.float32)  # stored in half the bytes; the arithmetic is fp32
        proto = TensorProto(name=name, data_type=element_type(array), dims=list(array.shape))
        if array.nbytes < SMALL:
            proto.raw_data = np.ascontiguousarray(array).tobytes()
        else:
            location, offset, length = place_of(name, array)
            proto.data_location = TensorProto.EXTERNAL
            for field, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
                proto.external_data.add(key=field, value=value)
        model.graph.initializer.append(proto)
    onnx.save_model(model, path)
