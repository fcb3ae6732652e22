"""Replaces operators that an older parser lacks by simpler ones.

TensorRT 10.3, which JetPack 6 has, supports opset 20, which has no RMSNormalization. The parser itself tells which
operators it lacks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ..graphs.graph import FLOAT, Graph

Nodes = list[onnx.NodeProto]


def expand(graph: Graph, lacking: Collection[str]) -> dict[str, int]:
    """Changes `graph` (fp32): nodes of `lacking` types become several. Returns how many of each."""
    counts: Counter[str] = Counter()
    nodes: Nodes = []
    for node in graph.nodes:
        if node.op_type in lacking and node.op_type in EXPANSIONS and not node.domain:
            counts[node.op_type] += 1
            nodes += EXPANSIONS[node.op_type](graph, node)
        else:
            nodes.append(node)
    if counts:
        graph.replace_nodes(nodes)
    return dict(counts)


class _Writer:
    """Emits fp32 nodes under the name of the one that they replace."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        self.name = name
        self.nodes: Nodes = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = self.graph.fresh(f"{self.name}/constant")
        self.graph.weights[name] = np.asarray(value, dtype)
        self.graph.types[name] = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return name

    def op(self, op_type: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        name = self.graph.fresh(f"{self.name}/{op_type}")
        output = output or name
        self.graph.types[output] = FLOAT
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output


def _rms_norm(graph: Graph, node: onnx.NodeProto) -> Nodes:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (1910.07467)."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    w = _Writer(graph, node.name)
    x, weight = node.input
    mean = w.op("ReduceMean", [w.op("Mul", [x, x]), w.constant([given.get("axis", -1)], np.int64)], keepdims=1)
    size = w.op("Sqrt", [w.op("Add", [mean, w.constant(given.get("epsilon", 1e-5))])])
    w.op("Mul", [w.op("Div", [x, size]), weight], node.output[0])
    return w.nodes


def _gelu(graph: Graph, node: onnx.NodeProto) -> Nodes:
    """x/2 (1 + erf(x / sqrt 2)), or its approximation by tanh (1606.08415)."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    w = _Writer(graph, node.name)
    x = node.input[0]
    if given.get("approximate", b"none") == b"tanh":
        cube = w.op("Mul", [w.op("Mul", [w.op("Mul", [x, x]), x]), w.constant(0.044715)])
        inner = w.op("Mul", [w.op("Add", [x, cube]), w.constant(math.sqrt(2 / math.pi))])
        bent = w.op("Tanh", [inner])
    else:
        bent = w.op("Erf", [w.op("Mul", [x, w.constant(math.sqrt(0.5))])])
    half = w.op("Mul", [x, w.constant(0.5)])
    w.op("Mul", [half, w.op("Add", [bent, w.constant(1.0)])], node.output[0])
    return w.nodes


EXPANSIONS: dict[str, Callable[[Graph, onnx.NodeProto], Nodes]] = {"RMSNormalization": _rms_norm, "Gelu": _gelu}
