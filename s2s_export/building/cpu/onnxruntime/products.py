"""int8 matrix products of rows with a constant weight, by one of two kernels of ONNX Runtime.

    by channel   DynamicQuantizeMatMul: weights with a scale for each output; rows are quantised together, with one
                 scale for all of them. The fastest for several rows. Weights are signed, but unsigned on a processor
                 whose product with signed ones saturates (`saturates`).
    by block     MatMulNBits, 8 bits, `accuracy_level` 4: weights and rows have a scale for every BLOCK values, so that
                 the result of a row does not depend on the rows beside it, and large values cost accuracy in their
                 block only. The fastest for one row, and the more accurate one.

A weight is quantised symmetrically, round to nearest, scale = largest absolute value / 127.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...graphs.graph import Graph
from ...graphs.passes import Applied

BLOCKS = (128, 64, 32, 16)  # values that share a scale; the largest that divides the length of a row
CONTRIB = "com.microsoft"
ZERO_POINT = 128  # of 8-bit weights that are stored unsigned
LEVELS = {8: 127, 4: 7}  # largest absolute value by bits
INT8_ARITHMETIC = 4  # `accuracy_level`: rows are quantised to 8 bits as well


@dataclass
class Quantised:
    """Weights that were quantised already, so that graphs can share them."""

    found: dict[tuple[Any, ...], tuple[np.ndarray, ...]] = field(default_factory=dict)

    def get(self, graph: Graph, name: str, how: tuple[Any, ...], make: Callable[[], tuple[np.ndarray, ...]]) -> Any:
        array = graph.weights[name]
        key = (graph.places.get(name) or id(array), array.shape, *how)
        if key not in self.found:
            self.found[key] = make()
        return self.found[key]


def apply(graph: Graph, scheme: str, store: Quantised, *, head_bits: int = 8) -> Applied:
    """Replace every Gemm and MatMul with a constant weight. scheme: "channel" or "block".

    head_bits: of the output projection (the product behind log_probs); 4 is possible with "block" only.
    """
    done = Applied(f"int8 products by {scheme}")
    head = _head(graph) if head_bits == 4 else None
    nodes = []
    for node in graph.nodes:
        reason = incompatible_reason(graph, node)
        if reason is not None:
            if reason:
                done.left[reason] += 1
            nodes.append(node)
            continue
        name, weight = node.input[1], _outputs_first(graph, node)
        bias = node.input[2] if len(node.input) > 2 else ""
        how = "channel" if scheme == "channel" else "block"
        if node.name == head:
            nodes.append(_by_block(graph, node, name, weight, bias, store, 4))
        elif how == "channel":
            nodes.append(_by_channel(graph, node, name, weight, bias, store))
        else:
            nodes.append(_by_block(graph, node, name, weight, bias, store, 8))
        done.count += 1
    graph.replace_nodes(nodes)
    if done.count:
        declare_contrib(graph)
    return done


def declare_contrib(graph: Graph) -> None:
    if all(entry.domain != CONTRIB for entry in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def incompatible_reason(graph: Graph, node: onnx.NodeProto) -> str | None:
    """None for a product that can be replaced, "" for other nodes, else the reason why the product stays."""
    if node.domain or node.op_type not in ("Gemm", "MatMul"):
        return ""
    if node.input[1] not in graph.weights:
        return "" if node.op_type == "MatMul" else "the weight is not constant"
    weight = graph.weights[node.input[1]]
    if weight.ndim != 2:
        return f"the weight has {weight.ndim} dimensions"
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("transA") or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return "it is a Gemm with transA, alpha or beta"
    if len(node.input) > 2 and (node.input[2] not in graph.weights or graph.weights[node.input[2]].ndim != 1):
        return "the bias is not a constant vector"
    return None


def _outputs_first(graph: Graph, node: onnx.NodeProto) -> np.ndarray:
    """The weight as [out, in]."""
    weight = graph.weights[node.input[1]]
    is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return weight if is_transposed else weight.T


def _by_channel(
    graph: Graph, node: onnx.NodeProto, name: str, weight: np.ndarray, bias: str, store: Quantised
) -> onnx.NodeProto:
    values, scales = store.get(graph, name, ("channel",), lambda: by_channel(weight))
    zero_point = ""
    if saturates():
        values = store.get(graph, name, ("channel", "unsigned"), lambda: (_unsigned(values),))[0]
        zero_point = _add(graph, f"{name}/zero_point", np.full(weight.shape[0], ZERO_POINT, np.uint8))
    data, scale = _add(graph, f"{name}/int8", values), _add(graph, f"{name}/int8_scale", scales)
    return _node("DynamicQuantizeMatMul", node, [data, scale, zero_point, bias])


@functools.cache
def saturates(processor: str | None = None, flags: frozenset[str] | None = None) -> bool:
    """Whether ONNX Runtime's product of unsigned rows with signed weights loses sums here.

    On x86 without VNNI its kernels add two products in 16 bits (vpmaddubsw), where 255 * 127 * 2 has no room.
    processor, flags: of another machine than this one, as platform.machine() and /proc/cpuinfo say them.
    """
    if (processor or platform.machine()) not in ("x86_64", "AMD64"):
        return False
    return not any("vnni" in flag for flag in (_flags() if flags is None else flags))


def _flags() -> frozenset[str]:
    """What /proc/cpuinfo says that the processor can do; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _unsigned(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.int16) + ZERO_POINT).astype(np.uint8)


def _by_block(
    graph: Graph, node: onnx.NodeProto, name: str, weight: np.ndarray, bias: str, store: Quantised, bits: int
) -> onnx.NodeProto:
    n_out, n_in = weight.shape
    block = block_size(n_in)
    values, scales = store.get(graph, name, ("block", bits), lambda: by_block(weight, block, bits))
    data, scale = _add(graph, f"{name}/{bits}bit", values), _add(graph, f"{name}/{bits}bit_scale", scales)
    attributes = {"K": n_in, "N": n_out, "bits": bits, "block_size": block, "accuracy_level": INT8_ARITHMETIC}
    return _node("MatMulNBits", node, [data, scale, "", "", bias], **attributes)


def _node(op_type: str, old: onnx.NodeProto, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
    inputs = [old.input[0], *inputs]
    while not inputs[-1]:
        inputs.pop()
    return helper.make_node(op_type, inputs, list(old.output), name=old.name, domain=CONTRIB, **attributes)


def _add(graph: Graph, name: str, array: np.ndarray) -> str:
    graph.weights[name] = array
    return name


def block_size(n_in: int) -> int:
    """The number of values that share a scale. If no size divides the row, it is padded."""
    return next((block for block in BLOCKS if n_in % block == 0), BLOCKS[-1])


def by_channel(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] -> int8 [in, out] and scales [out]."""
    weight = weight.astype(np.float32)
    scale = scale_of(np.abs(weight).max(axis=1), 8)
    values = np.rint(weight / scale[:, None]).astype(np.int8)
    return np.ascontiguousarray(values.T), scale


def by_block(weight: np.ndarray, block: int, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] -> uint8 [out, blocks, bytes of a block] and scales [out, blocks]; a byte holds two 4-bit values."""
    n_out, n_in = weight.shape
    padded = np.zeros((n_out, -(-n_in // block) * block), dtype=np.float32)
    padded[:, :n_in] = weight
    blocks = padded.reshape(n_out, -1, block)
    scale = scale_of(np.abs(blocks).max(axis=2), bits)
    half = ZERO_POINT if bits == 8 else 8
    values = (np.rint(blocks / scale[:, :, None]) + half).astype(np.uint8)
    if bits == 4:
        values = values[:, :, 0::2] | (values[:, :, 1::2] << 4)
    return values, scale


def scale_of(largest: np.ndarray, bits: int) -> np.ndarray:
    scale = (largest / LEVELS[bits]).astype(np.float32)
    scale[scale == 0] = 1.0
    return scale


def _head(graph: Graph) -> str | None:
    """The name of the product whose output becomes log_probs."""
    for node in graph.nodes:
        if node.op_type == "LogSoftmax":
            return next((p.name for p in graph.nodes if node.input[0] in p.output), None)
    return None


def drop_unused_weights(graph: Graph, read: Iterable[str]) -> None:
    needed = set(read)
    graph.weights = {name: array for name, array in graph.weights.items() if name in needed}
