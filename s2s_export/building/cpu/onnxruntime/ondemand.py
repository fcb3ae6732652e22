"""Outputs that a search seldom needs are computed only when it asks for them.

ONNX Runtime runs every node of a graph, even if it only leads to outputs that are not fetched. In a decoder step, those
are the copy of all log-probabilities [B,K,V] (0.9 ms of 30 at R = 32, V = 58k) and the attention weights of all layers.
They are moved into a branch of an If node, whose condition `want_<output>` is an input of the graph; the other branch
returns an empty tensor. Nodes that only such an output needs are moved with it. The logits, for which no search asks,
are removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from ...graphs.graph import Graph
from ...graphs.passes import Applied

ON_DEMAND = ("log_probs", "attention")
LEFT_OUT = ("logits",)
PREFIX = "want_"


def apply(graph: Graph, outputs: Sequence[str] = ON_DEMAND) -> Applied:
    done = Applied("outputs on demand")
    kept = [name for name in graph.outputs if name not in LEFT_OUT]
    if len(kept) < len(graph.outputs):
        graph.prune(kept)
    for output in outputs:
        if output not in graph.outputs:
            done.left[f"there is no output '{output}'"] += 1
        elif any(output in node.input for node in graph.nodes):
            done.left[f"'{output}' is read inside the graph"] += 1
        else:
            _move(graph, output)
            done.count += 1
    return done


def _move(graph: Graph, output: str) -> None:
    """Move an output, and the nodes that only it needs, into a branch of an If."""
    info = next(value for value in graph.model.graph.output if value.name == output)
    moving = _exclusive(graph, output)
    inside = f"{output}/wanted"
    for node in moving:
        node.output[:] = [inside if name == output else name for name in node.output]
    then = helper.make_graph(moving, f"{output}_wanted", [], [_value(info, inside)])
    empty = f"{output}/empty"
    shape = [0 if size.dim_param or not size.dim_value else size.dim_value for size in info.type.tensor_type.shape.dim]
    nothing = helper.make_node("ConstantOfShape", [f"{empty}_shape"], [empty])
    constant = helper.make_tensor(f"{empty}_shape", TensorProto.INT64, [len(shape)], shape)
    otherwise = helper.make_graph([nothing], f"{output}_unwanted", [], [_value(info, empty)], [constant])
    condition = PREFIX + output
    choice = helper.make_node("If", [condition], [output], name=f"{output}/If", then_branch=then, else_branch=otherwise)
    moved = {id_ for node in moving for id_ in node.output if id_}
    kept = [node for node in graph.nodes if not moved.intersection(node.output) and output not in node.output]
    graph.replace_nodes([*kept, choice])
    graph.model.graph.input.append(helper.make_tensor_value_info(condition, TensorProto.BOOL, []))


def _value(info: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    # Without a shape: the two branches have different ones.
    return helper.make_tensor_value_info(name, info.type.tensor_type.elem_type, None)


def _exclusive(graph: Graph, output: str) -> list[onnx.NodeProto]:
    """Copies of the nodes that nothing but `output` needs, in order."""
    others = set(graph.outputs) - {output}
    needed: set[str] = set(others)
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            needed.update(captured(node))
    found = []
    for node in graph.nodes:
        if not needed.intersection(node.output):
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            found.append(copied)
    return found


def captured(node: onnx.NodeProto) -> set[str]:
    """Values of the outer graph that the branches of a node read."""
    found: set[str] = set()
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                found.update(inner.input)
                found.update(captured(inner))
    return found


def read_values(graph: Graph) -> set[str]:
    """All values that some node reads, also inside branches."""
    found: set[str] = set()
    for node in graph.nodes:
        found.update(node.input)
        found.update(captured(node))
    return found
