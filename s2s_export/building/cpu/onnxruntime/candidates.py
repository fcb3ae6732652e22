"""The best M of V tokens in two steps: the best groups of tokens first, then the best tokens of these.

TopK over [R,V] looks at V values one by one. Finding the largest value of each of V/G groups of neighbours takes a
quarter of that time. The best M tokens are all in the M groups with the largest maxima, because for any other group
there are M groups that each have a token better than all of its own. Equal values keep their order, lower ids first,
because the chosen groups are searched in the order of their ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from ...graphs.graph import Graph
from ...graphs.passes import Applied

SMALLEST, LARGEST = 8, 1024  # tokens in a group
USUAL_M = 8  # candidates with four beams, for which the group size is chosen


def apply(graph: Graph) -> Applied:
    done = Applied("two-step top-k")
    nodes = []
    for node in graph.nodes:
        size = _vocabulary(graph, node) if node.op_type == "TopK" and not node.domain else None
        if size is None:
            nodes.append(node)
            continue
        group = group_size(size)
        if group is None:
            done.left[f"{size} tokens can't be cut into equal groups of {SMALLEST} to {LARGEST}"] += 1
            nodes.append(node)
            continue
        nodes += _two_steps(graph, node, size, group)
        done.count += 1
    graph.replace_nodes(nodes)
    return done


def group_size(vocabulary: int) -> int | None:
    """The divisor G of V with the fewest values to look at in both steps together: V/G groups and M*G tokens."""
    fitting = [g for g in range(SMALLEST, min(LARGEST, vocabulary // 2) + 1) if vocabulary % g == 0]
    return min(fitting, key=lambda g: vocabulary / g + USUAL_M * g, default=None)


def _vocabulary(graph: Graph, node: onnx.NodeProto) -> int | None:
    """V, if `node` finds the best tokens of [R,V]: if it reads the log-softmax of the output log_probs."""
    for value in graph.model.graph.output:
        if value.name == "log_probs":
            size = value.type.tensor_type.shape.dim[-1].dim_value
            return size if size and _comes_from(graph, node.input[0], "LogSoftmax") else None
    return None


def _comes_from(graph: Graph, value: str, op_type: str) -> bool:
    return any(value in node.output and node.op_type == op_type for node in graph.nodes)


def _two_steps(graph: Graph, node: onnx.NodeProto, vocabulary: int, group: int) -> list[onnx.NodeProto]:
    values, wanted = node.input
    n_groups = vocabulary // group
    stem = f"{node.name or 'TopK'}"
    nodes: list[onnx.NodeProto] = []

    def constant(value: object) -> str:
        name = graph.fresh(f"{stem}/constant")
        graph.weights[name] = np.asarray(value, dtype=np.int64)
        return name

    def op(op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        names = [graph.fresh(f"{stem}/{op_type}") for _ in range(outputs)]
        nodes.append(helper.make_node(op_type, list(inputs), names, name=names[0], **attributes))
        return names

    (grouped,) = op("Reshape", values, constant([-1, n_groups, group]))  # [R, V/G, G]
    (largest,) = op("ReduceMax", grouped, constant([2]), keepdims=0)
    (n_best,) = op("Min", wanted, constant([n_groups]))
    _, best = op("TopK", largest, n_best, outputs=2, axis=-1)
    in_order, _ = op("TopK", best, n_best, outputs=2, axis=-1, largest=0)  # [R, M] groups, ascending
    (index,) = op("Unsqueeze", in_order, constant([2]))
    (tokens,) = op("GatherND", grouped, index, batch_dims=1)  # [R, M, G]
    (n_tokens,) = op("Mul", n_best, constant([group]))
    (shape,) = op("Concat", constant([-1]), n_tokens, axis=0)
    (row,) = op("Reshape", tokens, shape)
    place = graph.fresh(f"{stem}/place")
    nodes.append(helper.make_node("TopK", [row, wanted], [node.output[0], place], name=f"{stem}/last", axis=-1))
    size = constant([group])
    (which,) = op("Div", place, size)
    (first,) = op("Mul", op("GatherElements", in_order, which, axis=1)[0], size)
    (offset,) = op("Mod", place, size)
    nodes.append(helper.make_node("Add", [first, offset], [node.output[1]], name=f"{stem}/ids"))
    return nodes
