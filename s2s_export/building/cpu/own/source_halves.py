"""Keys and values of a source of sound in 16 bits (fp16), for int8.

A window of sound has 1,500 positions, whose keys and values in fp32 are nearly as many bytes as the weights that a
step of base reads, and in a batch many times as many. fp16 rounds them by 1/2048 at most, far less than int8 does the
products that they are made by.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from ...graphs.graph import Graph
from ...graphs.links import Links
from ...graphs.passes import Applied
from . import DOMAIN
from .placing import WHOLE


def apply(graph: Graph) -> Applied:
    """The graph gives out, or reads, keys and values as fp16. What else reads them gets them as floats."""
    done = Applied("keys and values of the source in 16 bits")
    for value in graph.model.graph.output:
        if value.name.startswith(WHOLE):
            _give(graph, value)
            done.count += 1
    for value in graph.model.graph.input:
        if value.name.startswith(WHOLE):
            _read(graph, value)
            done.count += 1
    return done


def _give(graph: Graph, value: onnx.ValueInfoProto) -> None:
    maker = Links(graph).makers[value.name]
    wide = graph.fresh(value.name)
    maker.output[list(maker.output).index(value.name)] = wide
    cast = helper.make_node("Cast", [wide], [value.name], name=f"{value.name}.narrow", to=TensorProto.FLOAT16)
    graph.replace_nodes([*graph.nodes, cast])
    value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _read(graph: Graph, value: onnx.ValueInfoProto) -> None:
    others = []
    for node in Links(graph).readers(value.name):
        if node.domain == DOMAIN and node.op_type.startswith("CrossAttention"):
            node.op_type = "CrossAttentionFp16"
        else:
            others.append(node)
    if others:
        wide = graph.fresh(value.name)
        for node in others:
            node.input[:] = [wide if name == value.name else name for name in node.input]
        cast = helper.make_node("Cast", [value.name], [wide], name=f"{value.name}.widen", to=TensorProto.FLOAT)
        graph.replace_nodes([cast, *graph.nodes])
    value.type.tensor_type.elem_type = TensorProto.FLOAT16
