"""A graph in memory: its nodes as protobuf, its weights as numpy arrays.

Weights are memory-mapped views of weights.bin until a pass converts them, so that a pass over a large model takes
little memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT, FLOAT16, BFLOAT16, FLOAT8 = (
    *(TensorProto.FLOAT, TensorProto.FLOAT16),
    *(TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN),
)
FLOATS = (FLOAT, FLOAT16, BFLOAT16)
ALIGNMENT = 64  # bytes; weights begin at multiples of it, which suits memory maps
SMALL = 1024  # bytes; tensors below this stay inside the graph file
NUMPY_TYPES: dict[int, Any] = {
    FLOAT: np.float32,
    FLOAT16: np.float16,
    BFLOAT16: ml_dtypes.bfloat16,
    FLOAT8: ml_dtypes.float8_e4m3fn,
    TensorProto.INT8: np.int8,
}


class Graph:
    """One graph.

    model: nodes, inputs, outputs and functions; its initializers are in `weights` instead.
    weights: arrays by name. types: the ONNX element type of every value. places: where a weight is in the bundle;
    tied weights have the same place.
    """

    def __init__(
        self, name: str, model: onnx.ModelProto, weights: dict[str, np.ndarray], types: dict[str, int]
    ) -> None:
        self.name = name
        self.model = model
        self.weights = weights
        self.types = types
        self.places: dict[str, str] = {}
        self._n_fresh = 0

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    @property
    def inputs(self) -> list[str]:
        return [value.name for value in self.model.graph.input]

    @property
    def outputs(self) -> list[str]:
        return [value.name for value in self.model.graph.output]

    def replace_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        nodes = list(nodes)
        self.model.graph.ClearField("node")
        self.model.graph.node.extend(nodes)

    def fresh(self, stem: str) -> str:
        self._n_fresh += 1
        return f"{stem}/lowered{self._n_fresh}"

    def is_float(self, value: str) -> bool:
        return self.types.get(value) in FLOATS

    def copy(self) -> Graph:
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        copied = Graph(self.name, model, dict(self.weights), dict(self.types))
        copied.places = dict(self.places)
        copied._n_fresh = self._n_fresh  # a copy goes on counting: its names may stand in the graph already
        return copied

    def prune(self, outputs: Iterable[str], inputs: Iterable[str] | None = None) -> int:
        """Keep only `outputs` and what they need; unread inputs go, too. Returns how many nodes were removed."""
        wanted = set(outputs)
        needed, kept = set(wanted), []
        for node in reversed(self.model.graph.node):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        n_removed = len(self.model.graph.node) - len(kept)
        self.replace_nodes(reversed(kept))
        for field, keep in (("output", wanted), ("input", needed)):
            values = [value for value in getattr(self.model.graph, field) if value.name in keep]
            self.model.graph.ClearField(field)
            getattr(self.model.graph, field).extend(values)
        self.weights = {name: array for name, array in self.weights.items() if name in needed}
        return n_removed

    def merge_equal_weights(self) -> int:
        """Give equal weights one name, since a compiler stores each name separately. Returns how many were removed."""
        first: dict[tuple[Any, ...], str] = {}
        renamed: dict[str, str] = {}
        for name, array in self.weights.items():
            if array.nbytes >= SMALL:
                key = (array.dtype.name, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest())
                kept = first.setdefault(key, name)
                if kept != name:
                    renamed[name] = kept
        for node in self.model.graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        for name in renamed:
            del self.weights[name]
        return len(renamed)

    def save(self, path: Path) -> int:
        """Write the graph, and `<stem>.weights` with every distinct tensor once. Returns the size of both in bytes."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        places: dict[bytes, tuple[int, int]] = {}
        data = path.with_suffix(".weights")
        with data.open("wb") as file:
            for name, array in self.weights.items():
                model.graph.initializer.append(_initializer(name, array, data.name, places, file))
        onnx.save_model(model, path)
        return path.stat().st_size + data.stat().st_size

    def save_nodes(self, path: Path) -> None:
        """Replace a saved graph file; its weights must not have changed."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        model.graph.initializer.extend(onnx.load_model(path, load_external_data=False).graph.initializer)
        onnx.save_model(model, path)

    def describe(self) -> dict[str, Any]:
        """Inputs and outputs in the form that the manifest has."""
        return {
            "inputs": [_describe(value) for value in self.model.graph.input],
            "outputs": [_describe(value) for value in self.model.graph.output],
        }


def load(path: Path, name: str) -> Graph:
    """Load a graph of a bundle. Casts of stored weights are removed: a weight has the type in which it is stored."""
    model = onnx.load_model(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    }
    weights, places = {}, {}
    for proto in model.graph.initializer:
        weights[proto.name] = _array(proto, path.parent)
        if proto.data_location == TensorProto.EXTERNAL:
            places[proto.name] = "@".join(e.value for e in proto.external_data if e.key in {"location", "offset"})
        types[proto.name] = proto.data_type
    model.graph.ClearField("initializer")
    graph = Graph(name, model, weights, types)
    graph.places = places
    _fold_weight_casts(graph)
    return graph


def _fold_weight_casts(graph: Graph) -> None:
    kept = []
    for node in graph.model.graph.node:
        if node.op_type == "Cast" and node.input[0] in graph.weights:
            graph.weights[node.output[0]] = graph.weights[node.input[0]]
            graph.types[node.output[0]] = FLOAT
            if node.input[0] in graph.places:
                graph.places[node.output[0]] = graph.places[node.input[0]]
        else:
            kept.append(node)
    if len(kept) != len(graph.model.graph.node):
        graph.replace_nodes(kept)
        graph.prune(graph.outputs)


def _array(proto: onnx.TensorProto, folder: Path) -> np.ndarray:
    if proto.data_location != TensorProto.EXTERNAL:
        return onnx.numpy_helper.to_array(proto)
    place = {entry.key: entry.value for entry in proto.external_data}
    dtype = np.dtype(NUMPY_TYPES.get(proto.data_type) or helper.tensor_dtype_to_np_dtype(proto.data_type))
    count = int(np.prod(proto.dims)) if proto.dims else 1
    if count == 0:
        return np.zeros(tuple(proto.dims), dtype)
    raw = np.memmap(
        folder / place["location"], mode="r", offset=int(place.get("offset", 0)), shape=(count * dtype.itemsize,)
    )
    return raw.view(dtype).reshape(tuple(proto.dims))


def element_type(array: np.ndarray) -> int:
    for code, dtype in NUMPY_TYPES.items():
        if array.dtype == np.dtype(dtype):
            return code
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _initializer(
    name: str, array: np.ndarray, location: str, places: dict[bytes, tuple[int, int]], file: Any
) -> onnx.TensorProto:
    raw = np.ascontiguousarray(array).tobytes()
    proto = TensorProto(name=name, data_type=element_type(array), dims=list(array.shape))
    if len(raw) < SMALL:
        proto.raw_data = raw
        return proto
    # The type belongs to the key: TensorRT refuses two types at the same place, even if all values are 0.
    key = hashlib.sha256(f"{proto.data_type} {array.shape}".encode() + raw).digest()
    if key not in places:
        file.write(bytes(-file.tell() % ALIGNMENT))
        places[key] = (file.tell(), len(raw))
        file.write(raw)
    offset, length = places[key]
    proto.data_location = TensorProto.EXTERNAL
    for field, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=field, value=value)
    return proto


def _describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    names: dict[int, str] = {FLOAT: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}
    dtype = names.get(tensor.elem_type) or np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return {
        "name": value.name,
        "dtype": dtype,
        "shape": [size.dim_param or size.dim_value for size in tensor.shape.dim],
    }
