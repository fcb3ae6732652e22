"""Matrix products with a constant weight become Linear nodes, which include what follows the product:

activation   Relu, Gelu (both forms), x * Sigmoid(x), x * Sigmoid(1.702 x)
residual     an Add with rows of the same width
norm         LayerNormalization or RMSNormalization of the sum; the sum itself is an output only if something reads it
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from ...graphs.graph import Graph
from ...graphs.links import Links, attribute, id_of, replace
from ...graphs.passes import Applied
from ..onnxruntime.products import incompatible_reason
from . import node
from .norms import N_WEIGHTS, is_served
from .packing import LANES, Store, filled

ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4, "quick_gelu": 5}  # of plugins/cpu/kernels.h
QUICK_GELU = 1.702


def apply(graph: Graph, store: Store) -> list[Applied]:
    done = {name: Applied(name) for name in ("packed products", "fused activations", "fused residuals", "fused norms")}
    widths = _row_widths(graph)
    for product in graph.nodes:
        reason = incompatible_reason(graph, product)
        if reason is None:
            _replace(graph, product, store, widths, done)
        elif reason:
            done["packed products"].left[reason] += 1
    return list(done.values())


def _replace(
    graph: Graph, product: onnx.NodeProto, store: Store, widths: dict[str, int], done: dict[str, Applied]
) -> None:
    links = Links(graph)
    weight, packed = store.add(graph, product.input[1], bool(attribute(product, "transB")))
    bias = bias_of(graph, product)
    removed, value = [product], product.output[0]
    chosen, nodes, value = activation_of(graph, links, value)
    removed += nodes
    done["fused activations"].count += bool(nodes)
    residual, norm = "", None
    adding = links.only_reader(value, "Add") if widths.get(value) == packed.n_out else None
    if adding is not None:
        other = next((name for name in adding.input if name != value), "")
        if widths.get(other) == packed.n_out and links.maker(other, "Gather") is None:
            residual, value = other, adding.output[0]
            removed.append(adding)
            done["fused residuals"].count += 1
            norm = _norm(graph, links, value)
    outputs, norm_inputs, attributes = [value], ["", ""], {}
    last = max(removed, key=lambda n: _place(graph, n))  # the first place at which all of its inputs exist
    if norm is not None:
        removed.append(norm)
        done["fused norms"].count += 1
        norm_inputs = [*norm.input[1:], ""][:2]
        gives_sum = len(links.readers(value)) > 1 or links.is_output(value)
        outputs = [value if gives_sum else "", norm.output[0]]
        attributes = {"epsilon": float(attribute(norm, "epsilon", 1e-5)), "gives_sum": int(gives_sum)}
    inputs = [product.input[0], *weight, bias, residual, *norm_inputs]
    made = node(
        packed.operator("Linear"), inputs, outputs, product.name,
        n_out=packed.n_out, activation=ACTIVATIONS[chosen], **attributes,
    )  # fmt: skip
    replace(graph, removed, {last.output[0]: made})
    done["packed products"].count += 1


def _place(graph: Graph, wanted: onnx.NodeProto) -> int:
    return next(i for i, n in enumerate(graph.nodes) if id_of(n) == id_of(wanted))


def bias_of(graph: Graph, product: onnx.NodeProto) -> str:
    if len(product.input) < 3 or not product.input[2]:
        return ""
    name = f"{product.input[2]}/filled"
    graph.weights[name] = filled(np.asarray(graph.weights[product.input[2]], np.float32), LANES)
    return name


def activation_of(graph: Graph, links: Links, value: str) -> tuple[str, list[onnx.NodeProto], str]:
    """The activation that follows `value` ("none" without one), its nodes, and the value that they compute."""
    if relu := links.only_reader(value, "Relu"):
        return "relu", [relu], relu.output[0]
    if gelu := links.only_reader(value, "Gelu"):
        is_tanh = attribute(gelu, "approximate", b"none") == b"tanh"
        return "gelu_tanh" if is_tanh else "gelu", [gelu], gelu.output[0]
    readers = {reader.op_type: reader for reader in links.readers(value)}
    if links.is_output(value) or len(links.readers(value)) != 2:
        return "none", [], value
    if readers.keys() == {"Sigmoid", "Mul"}:
        sigmoid, product = readers["Sigmoid"], readers["Mul"]
        if links.only_reader(sigmoid.output[0], "Mul") is not None and sigmoid.output[0] in product.input:
            return "silu", [sigmoid, product], product.output[0]
    factored = [reader for reader in links.readers(value) if _factor(graph, reader) == QUICK_GELU]
    if len(factored) == 1 and (squashed := links.only_reader(factored[0].output[0], "Sigmoid")):
        last = links.only_reader(squashed.output[0], "Mul")
        if last is not None and value in last.input:
            return "quick_gelu", [factored[0], squashed, last], last.output[0]
    return "none", [], value


def _factor(graph: Graph, product: onnx.NodeProto) -> float | None:
    """The constant factor of a Mul, rounded to six digits."""
    for name in product.input if product.op_type == "Mul" else ():
        constant = graph.weights.get(name)
        if constant is not None and constant.size == 1:
            return round(float(constant.reshape(())), 6)
    return None


def _norm(graph: Graph, links: Links, value: str) -> onnx.NodeProto | None:
    """The norm over the last axis that reads `value`, if there is exactly one."""
    norms = [reader for reader in links.readers(value) if reader.op_type in N_WEIGHTS and reader.input[0] == value]
    return norms[0] if len(norms) == 1 and is_served(graph, norms[0]) else None


def _row_widths(graph: Graph) -> dict[str, int]:
    """The width of each value that is known to be rows [R, width]."""
    found: dict[str, Any] = {}
    # Of positions: one row for all, or one for each row.
    of_table = {n.output[0] for n in graph.nodes if n.op_type == "Gather" and n.input[0] in graph.weights}
    for made in graph.nodes:
        if made.op_type == "Gemm" and not made.domain and made.input[1] in graph.weights:
            weight = graph.weights[made.input[1]]
            found[made.output[0]] = weight.shape[0 if attribute(made, "transB") else 1]
        elif made.op_type == "Reshape" and made.input[1] in graph.weights:
            shape = graph.weights[made.input[1]]
            if shape.shape == (2,) and shape[0] == -1:
                found[made.output[0]] = int(shape[1])
        elif made.op_type in ("Relu", "Gelu", "Sigmoid", *N_WEIGHTS) and made.input[0] in found:
            found[made.output[0]] = found[made.input[0]]
        elif made.op_type in ("Add", "Mul"):
            widths = {found.get(name) for name in made.input if name not in graph.weights and name not in of_table}
            if len(widths) == 1 and None not in widths:
                found[made.output[0]] = widths.pop()
    return found
