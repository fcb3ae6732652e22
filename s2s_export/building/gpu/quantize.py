"""int8 and fp8 products by explicit Q/DQ around their inputs (Jacob et al., 1712.05877; Wu et al., 2004.09602).

Weights have a scale for every output column, activations one scale each, chosen on samples so that the error is least.
Everything is symmetric, with zero points of 0, since TensorRT supports no others and no uint8. Weights are stored
quantised. A runtime that has no such product computes the same numbers from the dequantised values, which is how the
error is measured on a CPU.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from ..graphs.graph import FLOAT, FLOAT8, Graph
from .activations import Activations

FORMATS: dict[str, tuple[int, Any, float]] = {
    "int8": (TensorProto.INT8, np.int8, 127.0),
    "fp8": (FLOAT8, ml_dtypes.float8_e4m3fn, 448.0),
}
FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # of the largest value, tried as clipping
LEAST_SCALE = 1e-6  # representable in fp16, where scales end up


def quantize(graph: Graph, precision: str, seen: Activations, *, skip: set[str]) -> dict[str, Any]:
    """Changes `graph` (fp32): every Gemm of a weight whose node is not in `skip` reads Q/DQ inputs.

    Returns how many products were quantised and why others were not.
    """
    kind, dtype, top = FORMATS[precision]
    left: Counter[str] = Counter()
    done: dict[str, str] = {}  # activation -> its dequantised name
    nodes: list[onnx.NodeProto] = []
    n_quantized = 0
    for node in graph.nodes:
        reason = _refuse(graph, node, seen, skip)
        if reason is not None:
            if reason:
                left[reason] += 1
            nodes.append(node)
            continue
        n_quantized += 1
        rows, weight = node.input[0], node.input[1]
        if rows not in done:
            done[rows] = f"{rows}/dequantized"
            scale = activation_scale(seen.by_value[graph.name, rows].values, seen.largest(graph.name, rows), precision)
            nodes += _round_trip(graph, rows, done[rows], np.float32(scale), kind, dtype)
        axis = 0 if _is_transposed(node) else 1
        nodes.append(_stored(graph, weight, f"{node.name}/weight", axis, kind, dtype, top))
        node.input[0], node.input[1] = done[rows], f"{node.name}/weight"
        nodes.append(node)
    graph.replace_nodes(nodes)
    graph.prune(graph.outputs)
    return {"products_quantized": n_quantized, "left": dict(left)}


def _refuse(graph: Graph, node: onnx.NodeProto, seen: Activations, skip: set[str]) -> str | None:
    """Why a node is not quantised: "" if it is not a product with a weight at all, None if it is quantised."""
    if node.op_type not in {"Gemm", "MatMul"} or node.input[1] not in graph.weights:
        return ""
    if graph.weights[node.input[1]].ndim != 2:
        return "weight is not a matrix"
    if node.name in skip:
        return "kept by the recipe or its range"
    if seen.largest(graph.name, node.input[0]) == 0.0:
        return "activation never seen or always zero"
    return None


def head_products(graph: Graph) -> set[str]:
    """The products that make the logits."""
    makers = {name: node for node in graph.nodes for name in node.output}
    value = "logits"
    while value in makers and makers[value].op_type not in {"Gemm", "MatMul"}:
        value = makers[value].input[0]
    return {makers[value].name} if value in makers else set()


def activation_scale(values: Any, largest: float, precision: str) -> float:
    """The scale with the least squared error: clipping a few large values makes all others more precise.

    fp8 is a floating-point type, so a larger range costs no precision, and nothing is clipped.
    """
    _, _, top = FORMATS[precision]
    if precision == "fp8" or not values.size:
        return max(largest / top, LEAST_SCALE)
    errors = []
    for fraction in FRACTIONS:
        scale = largest * fraction / top
        back = np.clip(np.rint(values / scale), -top, top) * scale
        errors.append(float(((values - back) ** 2).mean()))
    return max(largest * FRACTIONS[int(np.argmin(errors))] / top, LEAST_SCALE)


def _round_trip(graph: Graph, value: str, output: str, scale: Any, kind: int, dtype: Any) -> list[onnx.NodeProto]:
    scale_name, zero, quantized = (graph.fresh(f"{value}/{part}") for part in ("scale", "zero", "quantized"))
    graph.weights[scale_name] = np.array(scale, np.float32)
    graph.weights[zero] = np.zeros((), dtype)
    graph.types |= {scale_name: FLOAT, zero: kind, quantized: kind, output: FLOAT}
    return [
        helper.make_node("QuantizeLinear", [value, scale_name, zero], [quantized], name=graph.fresh(f"{value}/Q")),
        helper.make_node("DequantizeLinear", [quantized, scale_name, zero], [output], name=graph.fresh(f"{value}/DQ")),
    ]


def _stored(graph: Graph, weight: str, output: str, axis: int, kind: int, dtype: Any, top: float) -> onnx.NodeProto:
    """The node that dequantises a weight stored in the low format: [out, in] with axis 0, [in, out] with axis 1."""
    array = np.asarray(graph.weights[weight], np.float32)
    scale = np.maximum(np.abs(array).max(axis=1 - axis) / top, LEAST_SCALE).astype(np.float32)
    steps = np.clip(array / np.expand_dims(scale, 1 - axis), -top, top)
    stored, scales, zeros = (graph.fresh(f"{output}/{part}") for part in ("stored", "scale", "zero"))
    graph.weights[stored] = np.rint(steps).astype(dtype) if dtype is np.int8 else steps.astype(dtype)
    graph.weights[scales] = scale
    graph.weights[zeros] = np.zeros(scale.shape, dtype)
    graph.types |= {stored: kind, scales: FLOAT, zeros: kind, output: FLOAT}
    name = graph.fresh(f"{output}/DQ")
    return helper.make_node("DequantizeLinear", [stored, scales, zeros], [output], name=name, axis=axis)


def _is_transposed(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i == 1 for attribute in node.attribute)
