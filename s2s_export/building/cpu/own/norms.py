"""Norms that follow no product: of the embeddings, and of what a head computes before it projects."""

from __future__ import annotations

import onnx

from ...graphs.graph import Graph
from ...graphs.links import attribute
from ...graphs.passes import Applied
from . import node

N_WEIGHTS = {"LayerNormalization": 2, "RMSNormalization": 1}  # the operator knows them apart by their biases


def is_served(graph: Graph, norm: onnx.NodeProto) -> bool:
    """Whether our operators compute a norm: over the last axis, with the weights of its kind."""
    names = [name for name in norm.input[1:] if name]
    return (
        attribute(norm, "axis", -1) == -1
        and len(names) == N_WEIGHTS[norm.op_type]
        and all(name in graph.weights and graph.weights[name].ndim == 1 for name in names)
        and all(graph.weights[name].dtype == "float32" for name in names)
    )


def apply(graph: Graph) -> Applied:
    done = Applied("norms of their own")
    nodes = []
    for found in graph.nodes:
        if found.op_type not in N_WEIGHTS:
            nodes.append(found)
        elif len(found.output) != 1 or not is_served(graph, found):
            done.left["it has other weights or another axis"] += 1
            nodes.append(found)
        else:
            epsilon = float(attribute(found, "epsilon", 1e-5))
            nodes.append(node("Norm", list(found.input), list(found.output), found.name, epsilon=epsilon))
            done.count += 1
    graph.replace_nodes(nodes)
    return done
