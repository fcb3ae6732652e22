"""Lets the runtime say which cache slots a beam sees and where the step writes, so that slots can be used again.

In the portable step, slot t*K + k belongs to what beam k wrote at position t, and the mask is computed from the
ancestor table. After a few steps most slots are dead, because the histories of beams differ only near their ends:
attention reads K*T slots, of which little more than T are visible to any beam. With this pass, three inputs replace
`ancestors`, and the runtime removes dead slots whenever the cache is full (runtime/backends/_slots.py). With K = 4 and
T = 64, attention then reads a third of the slots.

    self_mask [B,1,K,N]     0 where beam k sees slot n, MASKED elsewhere
    write_group [1]         the step writes the K slots from write_group*K on
    slot_positions [B,N]    the position of each slot; only for relative positions
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from ....exporting.graphs.functions import PLUGINS, function_protos
from ...graphs.graph import Graph
from ...graphs.passes import Applied

PLAIN, BIASED = "BeamSelfAttention", "BeamSelfAttentionBias"
TABLE = "ancestors"
MASK, GROUP, POSITIONS = "self_mask", "write_group", "slot_positions"
MASK_INPUT, TABLE_INPUT, POSITION_INPUT, BIAS_INPUT = 5, 6, 7, 8  # input indices of the attention functions


def apply(graph: Graph) -> Applied:
    done = Applied("cache slots chosen by the runtime")
    attentions = [node for node in graph.nodes if node.domain == PLUGINS and node.op_type in (PLAIN, BIASED)]
    if not attentions:
        done.left["there is no self-attention over a cache of beams"] += 1
        return done
    biases = {node.input[BIAS_INPUT] for node in attentions if node.op_type == BIASED}
    spread = [_spread(graph, bias) for bias in sorted(biases)]
    if any(nodes is None for nodes in spread):
        done.left["the bias is not read from a table by position"] += len(attentions)
        return done
    for node in attentions:
        _rewire(node)
        done.count += 1
    before = [node for nodes in spread if nodes for node in nodes]
    graph.replace_nodes(_in_order(graph, [*_changed(graph, attentions), *before]))
    _declare(graph, bool(biases))
    graph.prune(graph.outputs)
    return done


def _rewire(node: onnx.NodeProto) -> None:
    mask = f"{node.input[BIAS_INPUT]}/mask" if node.op_type == BIASED else MASK
    # The body does not read the table, but the input must exist.
    node.input[MASK_INPUT], node.input[TABLE_INPUT], node.input[POSITION_INPUT] = mask, GROUP, GROUP
    if node.op_type == BIASED:
        del node.input[BIAS_INPUT]
        node.op_type = PLAIN


def _changed(graph: Graph, attentions: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    by_output = {node.output[0]: node for node in attentions}
    return [by_output.get(node.output[0], node) for node in graph.nodes]


def _spread(graph: Graph, bias: str) -> list[onnx.NodeProto] | None:
    """Nodes that make the bias [B,H,1,N] of every slot, added to the mask, from the one [1,H,1,C] of every position.

    The pattern is Unsqueeze(Gather(table [H,n], f(Range(capacity)), axis=1)). The slots' positions replace the range.
    """
    makers = {name: node for node in graph.nodes for name in node.output}
    unsqueeze = makers.get(bias)
    gather = makers.get(unsqueeze.input[0]) if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
    if gather is None or gather.op_type != "Gather" or all(a.i != 1 for a in gather.attribute if a.name == "axis"):
        return None
    ranges = [n for n in _makers_of(makers, gather.input[1]) if n.op_type == "Range"]
    if len(ranges) != 1 or not any(TABLE in n.input for n in _makers_of(makers, ranges[0].output[0])):
        return None
    stem = f"{bias}/slots"
    nodes, renamed = [], {ranges[0].output[0]: POSITIONS}
    for node in graph.nodes:  # repeat the nodes between the range and the table for the slots
        if renamed.keys() & set(node.input) and node in _makers_of(makers, bias) and node is not unsqueeze:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = f"{node.name}/slots"
            copied.input[:] = [renamed.get(name, name) for name in node.input]
            copied.output[:] = [f"{name}/slots" for name in node.output]
            renamed.update(zip(node.output, copied.output, strict=True))
            nodes.append(copied)
    by_source, by_head = f"{stem}/by_source", f"{stem}/by_head"
    nodes.append(
        helper.make_node("Transpose", [renamed[gather.output[0]]], [by_source], name=by_source, perm=[1, 0, 2])
    )
    axis = graph.fresh(f"{stem}/axis")
    graph.weights[axis] = np.array([2], dtype=np.int64)
    nodes.append(helper.make_node("Unsqueeze", [by_source, axis], [by_head], name=by_head))  # [B,H,1,N]
    nodes.append(helper.make_node("Add", [MASK, by_head], [f"{bias}/mask"], name=f"{bias}/mask"))
    return nodes


def _makers_of(makers: dict[str, onnx.NodeProto], value: str) -> list[onnx.NodeProto]:
    """All nodes by which `value` is computed."""
    found: list[onnx.NodeProto] = []
    waiting = [value]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node not in found:
            found.append(node)
            waiting += node.input
    return found


def _in_order(graph: Graph, nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes sorted so that each comes after what it reads."""
    waiting = list(nodes)
    ready = {MASK, GROUP, POSITIONS, "", *graph.inputs, *graph.weights}
    ordered: list[onnx.NodeProto] = []
    while waiting:
        late = []
        for node in waiting:
            if ready.issuperset(node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                late.append(node)
        if len(late) == len(waiting):
            raise ValueError(f"nodes read what nothing makes: {late[0].name}")
        waiting = late
    return ordered


def _declare(graph: Graph, has_positions: bool) -> None:
    inputs: list[tuple[str, int, list[str | int]]] = [
        (MASK, TensorProto.FLOAT, ["B", 1, "K", "N"]),
        (GROUP, TensorProto.INT64, [1]),
    ]
    if has_positions:
        inputs.append((POSITIONS, TensorProto.INT64, ["B", "N"]))
    for name, dtype, shape in inputs:
        graph.model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    # Replace all bodies, so that they match each other: another version may have written the graph.
    used = {(node.domain, node.op_type) for node in graph.nodes if node.domain}
    graph.model.ClearField("functions")
    graph.model.functions.extend(function_protos(used))
