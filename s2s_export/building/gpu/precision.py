"""An element type for every value of an fp32 graph, and the casts between.

TensorRT types a network strongly: what the graph says is what is computed. Products and attention take the low type;
norms, softmax, sums of two activations (the residual stream) and embeddings stay fp32; operators that only move values
or apply a function to each keep the type of their input. So a layer reads and writes its weights and caches at half the
bytes, and the error of one layer is not carried to the next in half precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...bundle import output_of
from ..graphs.graph import BFLOAT16, FLOAT, FLOAT16, NUMPY_TYPES, Graph, element_type

TYPE_NAMES: dict[int, str] = {FLOAT: "fp32", FLOAT16: "fp16", BFLOAT16: "bf16"}
TYPES = {name: code for code, name in TYPE_NAMES.items()}

PRODUCTS = {
    "Gemm", "MatMul", "Conv", "Attention", "QuantizeLinear", "DequantizeLinear",
    "TRT_Attention", "TRT_KVCacheUpdate", "AttentionWeights",
    "BeamSelfAttention", "BeamSelfAttentionBias", "CrossAttention", "CrossAttentionBias",
}  # fmt: skip
MOVES = {
    "Reshape", "Transpose", "Split", "Slice", "Concat", "Squeeze", "Unsqueeze", "Expand", "Identity", "Tile", "Pad",
    "Gather", "GatherElements", "GatherND", "Flatten", "Where",
}  # fmt: skip
BENDS = {
    "Relu", "Gelu", "Sigmoid", "Tanh", "Mul", "Div", "Neg", "Abs", "Min", "Max", "Clip", "LeakyRelu", "Elu", "Swish",
    "HardSwish", "HardSigmoid", "Erf", "Sqrt",
}  # fmt: skip
# Inputs that keep a type of their own, whatever the node computes in.
UNTYPED_INPUTS = {"QuantizeLinear": {2}, "DequantizeLinear": {0, 2}}
LOWEST = 3.0e4  # a masked score in fp16: far below any other and still finite when a bias is added
LARGE_TABLE = 1 << 20  # elements; embeddings of this size are stored in the low type, smaller tables cost nothing


class Lowering:
    """One graph's conversion. `convert` changes the graph and returns a report."""

    def __init__(self, graph: Graph, low: int, keep: Mapping[str, int], boundary: Mapping[str, int]) -> None:
        self.graph = graph
        self.low = low
        self.keep = keep
        self.boundary = boundary
        self.now: dict[str, int] = {}  # the type that each float value has
        self.nodes: list[onnx.NodeProto] = []
        self.casts: dict[tuple[str, int], str] = {}
        self.counts: Counter[str] = Counter()
        self.n_clipped = 0
        self.shared = _tables_that_multiply(graph)

    def convert(self) -> dict[str, Any]:
        graph = self.graph
        renamed: dict[str, str] = {}
        for value in graph.model.graph.input:
            if graph.is_float(value.name):
                self.now[value.name] = self.boundary.get(value.name, FLOAT)
                value.type.tensor_type.elem_type = self.now[value.name]
        final = {value.name: value for value in graph.model.graph.output if graph.is_float(value.name)}
        for node in graph.nodes:
            self._node(node)
        for name, value in final.items():
            wanted = self.boundary.get(name, FLOAT)
            value.type.tensor_type.elem_type = wanted
            if self.now[name] != wanted:
                renamed[name] = graph.fresh(name)
        self._rename(renamed)
        for name, inner in renamed.items():
            self.nodes.append(self._cast_node(inner, self.boundary.get(name, FLOAT), name))
        graph.replace_nodes(self.nodes)
        graph.types.update(self.now)
        graph.prune(graph.outputs)
        return {
            "nodes": dict(self.counts),
            "casts": sum(node.op_type == "Cast" for node in self.nodes),
            "constants_clipped": self.n_clipped,
        }

    def _node(self, node: onnx.NodeProto) -> None:
        graph = self.graph
        floats = [name for name in node.input if graph.is_float(name)]
        if node.op_type == "Cast" and floats and graph.is_float(node.output[0]):
            node = helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)
        if not floats and not any(graph.is_float(name) for name in node.output):
            self.nodes.append(node)
            return
        chosen = self._type_of(node)
        self.counts[TYPE_NAMES[chosen]] += 1
        table = node.op_type == "Gather" and node.input[0] in graph.weights
        untyped = UNTYPED_INPUTS.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if graph.is_float(name) and i not in untyped:
                node.input[i] = self._as(name, chosen)
        if node.op_type == "Cast" and graph.is_float(node.output[0]):  # from integers or booleans
            _set_attribute(node, "to", chosen)
        self.nodes.append(node)
        for i, name in enumerate(node.output):
            if not graph.is_float(name):
                continue
            self.now[name] = chosen
            if table and chosen != FLOAT:  # embeddings are the start of the residual stream
                node.output[i] = graph.fresh(name)
                self.nodes.append(self._cast_node(node.output[i], FLOAT, name))
                self.now[name] = FLOAT

    def _type_of(self, node: onnx.NodeProto) -> int:
        graph = self.graph
        if node.name in self.keep:
            return self.keep[node.name]
        if node.op_type in PRODUCTS:
            return self.low
        if node.op_type == "Gather" and node.input[0] in graph.weights:
            table = graph.weights[node.input[0]]
            stored_low = table.size >= LARGE_TABLE or graph.places.get(node.input[0]) in self.shared
            return self.low if stored_low and not self._overflows(table) else FLOAT
        moving = [name for name in node.input if graph.is_float(name) and name not in graph.weights]
        constant_sum = node.op_type in {"Add", "Sub"} and len(moving) == 1
        if moving and (node.op_type in MOVES | BENDS or constant_sum):
            found = {self.now[name] for name in moving}
            return found.pop() if len(found) == 1 else FLOAT
        return FLOAT

    def _as(self, name: str, wanted: int) -> str:
        """The name under which a value has the type `wanted`: itself, a converted weight, or a cast."""
        if name in self.graph.weights:
            return self._weight(name, wanted)
        if self.now[name] == wanted:
            return name
        key = (name, wanted)
        if key not in self.casts:
            self.casts[key] = self.graph.fresh(f"{name}/{TYPE_NAMES[wanted]}")
            self.nodes.append(self._cast_node(name, wanted, self.casts[key]))
        return self.casts[key]

    def _weight(self, name: str, wanted: int) -> str:
        array = self.graph.weights[name]
        key = (name, wanted)
        if key not in self.casts:
            if array.size == 1 and array.dtype == np.float32 and float(np.abs(array).max()) > LOWEST:
                # The score of masked positions, which is too large for fp16.
                array = np.clip(array, -LOWEST, LOWEST)
                self.n_clipped += 1
            elif element_type(array) == wanted:
                return name
            converted = self.graph.fresh(f"{name}/{TYPE_NAMES[wanted]}")
            self.graph.weights[converted] = np.asarray(array, np.float32).astype(NUMPY_TYPES[wanted])
            self.graph.types[converted] = wanted
            self.casts[key] = converted
        return self.casts[key]

    def _overflows(self, array: np.ndarray) -> bool:
        largest = float(np.abs(np.asarray(array, np.float32)).max())
        return self.low == FLOAT16 and largest > float(np.finfo(np.float16).max)

    def _rename(self, names: Mapping[str, str]) -> None:
        for node in self.nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]

    def _cast_node(self, value: str, wanted: int, output: str) -> onnx.NodeProto:
        return helper.make_node("Cast", [value], [output], name=self.graph.fresh(f"{value}/cast"), to=wanted)


def convert(
    graph: Graph, low: str, keep: Mapping[str, int] | None = None, boundary: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Changes `graph` (fp32) to compute in `low` ("fp16", "bf16") where that serves.

    keep: nodes by name that compute in another type. boundary: inputs and outputs by name with a type other than fp32.
    Returns counts: nodes by type, casts added, constants clipped.
    """
    return Lowering(graph, TYPES[low], keep or {}, boundary or {}).convert()


def boundaries(graphs: Mapping[str, Graph], low: str) -> dict[str, int]:
    """Which values between the graphs are stored in the low type: caches, and what is computed once per source.

    A step reads these from memory. Recurrent states stay fp32: they are small, and their errors add up over a sentence.
    """
    step = graphs["decoder_step"]
    outputs = set(step.outputs)
    found: dict[str, int] = {}
    for value in step.model.graph.input:
        letters = {size.dim_param for size in value.type.tensor_type.shape.dim}
        out = output_of(value.name)
        once_per_source = "S" in letters and value.name in graphs["cross_kv_init"].outputs
        if graphs["decoder_step"].is_float(value.name) and (once_per_source or (out in outputs and "K" not in letters)):
            found[value.name] = TYPES[low]
            if out in outputs:
                found[out] = TYPES[low]
    return found


def _tables_that_multiply(graph: Graph) -> set[str]:
    """Locations of weights that a product reads. A tied embedding is stored once, in the low type as well."""
    return {
        graph.places[name]
        for node in graph.nodes
        if node.op_type in {"Gemm", "MatMul"}
        for name in node.input
        if name in graph.places
    }


def _set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
            return
    node.attribute.append(helper.make_attribute(name, value))
