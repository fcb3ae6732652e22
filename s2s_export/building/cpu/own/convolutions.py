"""Convolutions along time, which encoders of sound begin with, become products.

The portable graph has

    features [B,C,T] -> Conv -> Gelu -> Conv -> Gelu -> Transpose

The operator Windows lays the frames that an output reads side by side, and Linear multiplies them, with bias and GELU.
Rows stay rows: nothing but the features is transposed. The features, which no norm has scaled, are multiplied as
floats, what follows as bytes. In floats throughout ONNX Runtime's own convolution is as fast, and stays.
"""

from __future__ import annotations

import onnx

from ...graphs.graph import Graph
from ...graphs.links import Links, attribute, replace
from ...graphs.passes import Applied
from . import node
from .packing import FP32, LANES, Store, filled
from .products import ACTIVATIONS

TO_ROWS = [0, 2, 1]  # [B,C,T] -> [B,T,C]
Layer = tuple[onnx.NodeProto, onnx.NodeProto]  # Conv, Gelu


def apply(graph: Graph, store: Store) -> Applied:
    done = Applied("convolutions along time")
    links = Links(graph)
    for last in [n for n in graph.nodes if n.op_type == "Transpose" and list(attribute(n, "perm", [])) == TO_ROWS]:
        layers = _layers(graph, links, last.input[0])
        value = layers[0][0].input[0] if layers else ""
        for i, layer in enumerate(layers):
            is_last = i == len(layers) - 1
            value = _replace(graph, store, layer, value, last if is_last else None, is_first=i == 0)
        done.count += len(layers)
    if n_left := sum(n.op_type == "Conv" for n in graph.nodes):
        done.left["it is not along time, or another node reads what it gives"] = n_left
    return done


def _layers(graph: Graph, links: Links, value: str) -> list[Layer]:
    """The convolutions that `value` comes from, which nothing else reads; the first one first."""
    found: list[Layer] = []
    while (gelu := links.maker(value, "Gelu")) is not None and attribute(gelu, "approximate", b"none") == b"none":
        convolution = links.maker(gelu.input[0], "Conv")
        is_read_once = all(
            len(links.readers(name)) == 1 and not links.is_output(name) for name in (value, gelu.input[0])
        )
        if convolution is None or not is_read_once or not _is_along_time(graph, convolution):
            break
        found.insert(0, (convolution, gelu))
        value = convolution.input[0]
    return found


def _is_along_time(graph: Graph, convolution: onnx.NodeProto) -> bool:
    """Whether Windows and Linear compute it: weight [O,C,W] with W odd, W // 2 zeros at both ends, and a bias."""
    weight = graph.weights.get(convolution.input[1])
    if weight is None or weight.ndim != 3 or weight.shape[2] % 2 == 0:
        return False
    return (
        len(convolution.input) == 3
        and convolution.input[2] in graph.weights
        and list(attribute(convolution, "pads", [])) == [weight.shape[2] // 2] * 2
        and attribute(convolution, "group", 1) == 1
        and list(attribute(convolution, "dilations", [1])) == [1]
        and attribute(convolution, "auto_pad", b"NOTSET") == b"NOTSET"
    )


def _replace(
    graph: Graph, store: Store, layer: Layer, value: str, last: onnx.NodeProto | None, *, is_first: bool
) -> str:
    """Replace a layer whose input is now `value`, and the Transpose behind the last one. Returns its output's name."""
    convolution, gelu = layer
    name, bias = convolution.input[1:3]
    n_out, n_channels, width = graph.weights[name].shape
    rows = f"{name}/rows"
    graph.weights[rows] = graph.weights[name].transpose(0, 2, 1).reshape(n_out, width * n_channels)
    if name in graph.places:
        graph.places[rows] = f"{graph.places[name]}/rows"
    weight, packed = store.add(graph, rows, precision=FP32 if is_first else None)
    graph.weights[f"{bias}/filled"] = filled(graph.weights[bias].astype("float32"), LANES)
    stride = int(next(iter(attribute(convolution, "strides", [1]))))
    windows = node(
        "Windows", [value], [convolution.output[0]], f"{convolution.name}/windows",
        width=width, stride=stride, is_turned=int(is_first),
    )  # fmt: skip
    output: str = gelu.output[0] if last is None else last.output[0]
    product = node(
        packed.operator("Linear"), [convolution.output[0], *weight, f"{bias}/filled"], [output], convolution.name,
        n_out=n_out, activation=ACTIVATIONS["gelu"],
    )  # fmt: skip
    removed = [convolution, gelu, *([] if last is None else [last])]
    replace(graph, removed, {convolution.output[0]: windows, output: product})
    return output
