"""bf16 on a CPU that has no kernels for it: the same graph in fp32, every bf16 value rounded where it is made.

Products add up in fp32, as tensor cores do.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .graph import BFLOAT16, FLOAT, Graph


def rounded(graph: Graph) -> Graph:
    """A copy that ONNX Runtime's CPU can run."""
    copy = graph.copy()
    for name, array in copy.weights.items():
        if array.dtype.name == "bfloat16":
            copy.weights[name] = array.astype(np.float32)
    for value in (*copy.model.graph.input, *copy.model.graph.output):
        if value.type.tensor_type.elem_type == BFLOAT16:
            value.type.tensor_type.elem_type = FLOAT
    nodes: list[onnx.NodeProto] = []
    for node in copy.nodes:
        low = [name for name in node.output if copy.types.get(name) == BFLOAT16 or _casts_down(node)]
        if _casts_down(node):
            node.attribute[0].i = FLOAT
        if not low or node.op_type == "TRT_KVCacheUpdate":
            nodes.append(node)
            continue
        exact = {name: copy.fresh(name) for name in low}
        node.output[:] = [exact.get(name, name) for name in node.output]
        nodes.append(node)
        for name, before in exact.items():
            between = copy.fresh(name)
            nodes.append(helper.make_node("Cast", [before], [between], name=copy.fresh("round"), to=BFLOAT16))
            nodes.append(helper.make_node("Cast", [between], [name], name=copy.fresh("widen"), to=FLOAT))
    copy.replace_nodes(nodes)
    return copy


def _casts_down(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == BFLOAT16 for a in node.attribute)
