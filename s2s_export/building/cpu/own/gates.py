"""Gated layers: half of a product's outputs goes through an activation and is multiplied with the other half.

The portable graph has

    Split(rows) -> activation of the first part -> Mul with the second
"""

from __future__ import annotations

import onnx

from ...graphs.graph import Graph
from ...graphs.links import Links, attribute, replace
from ...graphs.passes import Applied
from . import node
from .products import ACTIVATIONS, activation_of


def apply(graph: Graph) -> Applied:
    done = Applied("gates")
    for split in [n for n in graph.nodes if n.op_type == "Split" and len(n.output) == 2]:
        done.count += _replace(graph, split)
    return done


def _replace(graph: Graph, split: onnx.NodeProto) -> bool:
    links = Links(graph)
    sizes = graph.weights.get(split.input[1]) if len(split.input) > 1 else None
    if attribute(split, "axis", 0) != -1 or sizes is None or len(set(sizes.tolist())) != 1:
        return False
    chosen, removed, value = activation_of(graph, links, split.output[0])
    product = links.only_reader(value, "Mul")
    if not removed or product is None or links.only_reader(split.output[1], "Mul") != product:
        return False
    made = node("Gate", [split.input[0]], [product.output[0]], split.name, activation=ACTIVATIONS[chosen])
    replace(graph, [split, *removed, product], {product.output[0]: made})
    return True
