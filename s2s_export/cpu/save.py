"""Engine graphs and their weights: one file of weights for all graphs of an engine, or the bundle's own.

An engine whose weights are all the bundle's, unchanged, refers to the bundle's weights.bin and brings none. Otherwise
its weights.bin holds every distinct tensor once, also those that are read as another shape (the bytes of an output
projection as rows of the embedding).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ..lowering.graph import FLOAT, FLOATS, SMALL, Graph, element_type

ALIGNMENT = 4096  # bytes; a page, so that ONNX Runtime maps a weight and copies nothing
NAME = "weights.bin"


def save(graphs: dict[str, Graph], folder: Path) -> str:
    """Write `<name>.onnx` of each graph into `folder`. Returns whose weights they use: "bundle" or "engine"."""
    in_bundle = all(_place(graph, name) for graph in graphs.values() for name in _large(graph))
    if in_bundle:
        for name, graph in graphs.items():
            _write(graph, folder / f"{name}.onnx", lambda n, a, graph=graph: _place(graph, n))
        return "bundle"
    with (folder / NAME).open("wb") as file:
        places: dict[bytes, tuple[str, int, int]] = {}
        for name, graph in graphs.items():
            _write(graph, folder / f"{name}.onnx", lambda n, a: _store(a, file, places))
    return "engine"


def _large(graph: Graph) -> list[str]:
    return [name for name, array in graph.weights.items() if array.nbytes >= SMALL]


def _place(graph: Graph, name: str) -> tuple[str, int, int] | None:
    """Where the bundle holds exactly this tensor, as fp32."""
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
