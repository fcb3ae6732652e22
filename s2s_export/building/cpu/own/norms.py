"""Norms that follow no product: of the embeddings, and of what a head computes before it projects."""

from __future__ import annotations

from ...graphs.graph import Graph
from ...graphs.links import attribute
from ...graphs.passes import Applied
from . import node

N_WEIGHTS = {"LayerNormalization": 2, "RMSNormalization": 1}  # the operator knows them apart by their biases


def apply(graph: Graph) -> Applied:
    done = Applied("norms of their own")
    nodes = []
    for found in graph.nodes:
        if found.op_type not in N_WEIGHTS:
            nodes.append(found)
            continue
        weights = [graph.weights.get(name) for name in found.input[1:] if name]
        if (
            attribute(found, "axis", -1) != -1
            or len(found.output) != 1
            or len(weights) != N_WEIGHTS[found.op_type]
            or any(weight is None or weight.ndim != 1 or weight.dtype != "float32" for weight in weights)
        ):
            done.left["it has other weights or another axis"] += 1
            nodes.append(found)
            continue
        epsilon = float(attribute(found, "epsilon", 1e-5))
        nodes.append(node("Norm", list(found.input), list(found.output), found.name, epsilon=epsilon))
        done.count += 1
    graph.replace_nodes(nodes)
    return done
