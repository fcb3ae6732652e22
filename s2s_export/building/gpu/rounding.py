"""Emulates fp16 and bf16 on a CPU: the same graph in fp32, with every low value rounded where it is computed.

ONNX Runtime runs an fp16 graph on a CPU by casting to fp32 and back, and removes casts between neighbouring nodes. So
what overflows on a GPU does not overflow there. This copy rounds every value, so that such overflows show. Sums within
a product are fp32, as in tensor cores.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from ..graphs.graph import BFLOAT16, FLOAT, FLOAT16, Graph

LOW = (FLOAT16, BFLOAT16)


def rounded(graph: Graph) -> Graph:
    """A copy in fp32 with the values of `graph`. Inputs and outputs are fp32 and hold low values."""
    copy = graph.copy()
    for name, array in copy.weights.items():
        if array.dtype.name in {"float16", "bfloat16"}:
            copy.weights[name] = array.astype(np.float32)
    for value in (*copy.model.graph.input, *copy.model.graph.output):
        if value.type.tensor_type.elem_type in LOW:
            value.type.tensor_type.elem_type = FLOAT
    nodes: list[onnx.NodeProto] = []
    for node in copy.nodes:
        low = _cast_to(node)
        kinds = {name: low or copy.types.get(name, FLOAT) for name in node.output}
        if low:
            node.attribute[0].i = FLOAT
        exact = {name: copy.fresh(name) for name, kind in kinds.items() if kind in LOW}
        node.output[:] = [exact.get(name, name) for name in node.output]
        nodes.append(node)
        for name, before in exact.items():
            between = copy.fresh(name)
            nodes.append(helper.make_node("Cast", [before], [between], name=copy.fresh("round"), to=kinds[name]))
            nodes.append(helper.make_node("Cast", [between], [name], name=copy.fresh("widen"), to=FLOAT))
    copy.replace_nodes(nodes)
    return copy


def _cast_to(node: onnx.NodeProto) -> int:
    """The low type that a cast makes, or 0."""
    if node.op_type != "Cast":
        return 0
    return next((int(a.i) for a in node.attribute if a.name == "to" and a.i in LOW), 0)
