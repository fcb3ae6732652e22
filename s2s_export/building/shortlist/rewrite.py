"""A decoder step whose output projection is an input of the graph.

The pass finds the product before the log-softmax, whichever kernel computes it, and removes everything after it. It is
replaced by a product with `shortlist_weight` [W,E] and `shortlist_bias` [W], where W is the number of tokens in a
batch's shortlist, and the outputs are as before, but over W tokens instead of V. All other weights stay in the file in
which they are; only nodes are written. Decoding does not need onnx.

With ONNX Runtime's kernels, the new product is fp32: W is a tenth of V or less, so that int8 would save little time and
would round the weights. With our own kernels, the head reads its packed rows from inputs, and a second graph takes
those rows from the engine's weights, once for each batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from ...errors import BuildError
from ..cpu.own import DOMAIN

WEIGHT, BIAS, IDS = "shortlist_weight", "shortlist_bias", "shortlist_ids"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# The weight inputs of our head operators: names, element types and shapes (in blocks, see plugins/cpu).
PARTS: dict[str, dict[str, tuple[int, list[Any] | None]]] = {
    "Head": {WEIGHT: (FLOAT, ["WB", "E", 16])},
    "HeadInt8": {
        WEIGHT: (TensorProto.INT8, ["WB", "E4", 16, 4]),
        "shortlist_scale": (FLOAT, ["WF"]),
        "shortlist_sum": (TensorProto.INT32, ["WF"]),
    },
    "HeadFp16": {WEIGHT: (TensorProto.UINT16, ["WB", "E", 16])},
    "HeadBf16": {WEIGHT: (TensorProto.UINT16, ["WB", "E", 16])},
}


def rewrite(path: Path, destination: Path) -> dict[str, Any]:
    """Write the rewritten step at `path` to `destination`. Returns its inputs and outputs as in a manifest."""
    model = onnx.load_model(path, load_external_data=False)
    if _own_head(model.graph) is not None:
        return _rewrite_own(model, destination)
    head = _head(model.graph, path)
    hidden = head.input[0]
    gone = _depending_on(model.graph, head.output[0])
    nodes = [node for node in model.graph.node if node is not head and not gone.intersection(node.output)]
    outputs = [value for value in model.graph.output if value.name not in gone | {head.output[0]}]
    tail, tail_outputs, tail_inputs = _tail(hidden)
    width = _width(model.graph, path)
    inputs = [v for v in model.graph.input if v.name not in ("n_candidates", "probe_ids")]
    inputs += [
        helper.make_tensor_value_info(WEIGHT, FLOAT, ["W", width]),
        helper.make_tensor_value_info(BIAS, FLOAT, ["W"]),
        *tail_inputs,
    ]
    nodes, inputs = _needed([*nodes, *tail], inputs, [v.name for v in (*outputs, *tail_outputs)])
    read = {name for node in nodes for name in _reads(node)}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = helper.make_graph(nodes, model.graph.name, inputs, [*outputs, *tail_outputs], [*weights, *_constants()])
    model.graph.CopyFrom(graph)
    onnx.save_model(model, destination)
    return {"inputs": [_describe(v) for v in graph.input], "outputs": [_describe(v) for v in graph.output]}


def _own_head(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    return next((node for node in graph.node if node.domain == DOMAIN and node.op_type in PARTS), None)


def _rewrite_own(model: onnx.ModelProto, destination: Path) -> dict[str, Any]:
    graph = model.graph
    head = _own_head(graph)
    assert head is not None
    parts = PARTS[head.op_type]
    head.input[1 : 2 + len(parts)] = [*parts, BIAS]
    attributes = [attribute for attribute in head.attribute if attribute.name != "n_out"]
    del head.attribute[:]
    head.attribute.extend(attributes)
    inputs = {**parts, BIAS: (FLOAT, ["W"])}
    graph.input.extend(helper.make_tensor_value_info(name, *entry) for name, entry in inputs.items())
    _keep_read_weights(graph)
    for value in graph.output:
        if value.name == "log_probs":
            value.type.tensor_type.shape.dim[-1].dim_param = "W"
    onnx.save_model(model, destination)
    return {"inputs": [_describe(v) for v in graph.input], "outputs": [_describe(v) for v in graph.output]}


def write_rows(path: Path, destination: Path) -> bool:
    """Write the graph that turns `shortlist_ids` [W] into inputs of our head. Returns False if the step has none."""
    model = onnx.load_model(path, load_external_data=False)
    graph = model.graph
    head = _own_head(graph)
    if head is None:
        return False
    parts = PARTS[head.op_type]
    n_rows = next(a.i for a in head.attribute if a.name == "n_out")
    take = helper.make_node(
        head.op_type.replace("Head", "TakeRows"), [IDS, *head.input[1 : 1 + len(parts)]], list(parts), domain=DOMAIN,
        n_rows=n_rows,
    )  # fmt: skip
    ids = helper.make_tensor_value_info(IDS, INT64, ["W"])
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, (kind, _) in parts.items()]
    graph.CopyFrom(helper.make_graph([take], "shortlist_rows", [ids], outputs, list(graph.initializer)))
    _keep_read_weights(graph)
    onnx.save_model(model, destination)
    return True


def _keep_read_weights(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in _reads(node)}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    graph.ClearField("initializer")
    graph.initializer.extend(weights)


def find_head(path: Path) -> dict[str, Any]:
    """Where the portable step at `path` has its output projection: `weight` and `bias` (or None), each with file,
    offset, dtype and shape.
    """
    model = onnx.load_model(path, load_external_data=False)
    head = _head(model.graph, path)
    is_transposed = any(a.name == "transB" and a.i for a in head.attribute)
    if head.op_type != "Gemm" or not is_transposed:
        raise BuildError(
            f"{path}: its output projection is not a Gemm with a row for each token; export the bundle again"
        )
    bias = _place(model.graph, head.input[2], path) if len(head.input) > 2 else None
    return {"weight": _place(model.graph, head.input[1], path), "bias": bias}


def _head(graph: onnx.GraphProto, path: Path) -> onnx.NodeProto:
    """The product whose output the log-softmax reads."""
    for node in graph.node:
        if node.op_type == "LogSoftmax":
            for product in graph.node:
                if node.input[0] in product.output:
                    found: onnx.NodeProto = product
                    return found
    raise BuildError(f"{path}: no output projection before a log-softmax was found; a shortlist can't cut this model")


def _depending_on(graph: onnx.GraphProto, value: str) -> set[str]:
    """All values that are computed from `value`; nodes are in order."""
    found = {value}
    for node in graph.node:
        if found.intersection(_reads(node)):
            found.update(node.output)
    return found


def _reads(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, those that its branches take from outside included."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                found |= _reads(inner)
    return found - {""}


def _needed(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]
) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto]]:
    """Nodes that lead to an output, and the inputs that they read."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= _reads(node)
    return kept[::-1], [value for value in inputs if value.name in wanted]


def _tail(hidden: str) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The nodes, inputs and outputs of `graphs.transformer.emit_candidates`, but over W tokens."""
    nodes: list[onnx.NodeProto] = []

    def op(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        name = f"shortlist/{outputs[0]}"
        nodes.append(helper.make_node(op_type, inputs, outputs, name=name, **attributes))

    def shaped(value: str, last: str, output: str) -> None:
        op("Concat", ["shortlist/beams", last], [f"shortlist/{output}_shape"], axis=0)
        op("Reshape", [value, f"shortlist/{output}_shape"], [output])

    op("Shape", ["token"], ["shortlist/beams"])  # [2]: B and K
    op("Shape", ["probe_ids"], ["shortlist/n_probes"], start=2, end=3)
    op("Gemm", [hidden, WEIGHT, BIAS], ["shortlist/logits"], transB=1)
    op("LogSoftmax", ["shortlist/logits"], ["shortlist/log_probs"], axis=-1)
    op("TopK", ["shortlist/log_probs", "n_candidates"], ["shortlist/best", "shortlist/best_ids"], axis=-1)
    op("Concat", ["shortlist/minus_one", "shortlist/n_probes"], ["shortlist/probe_rows_shape"], axis=0)
    op("Reshape", ["probe_ids", "shortlist/probe_rows_shape"], ["shortlist/probe_rows"])
    op("GatherElements", ["shortlist/log_probs", "shortlist/probe_rows"], ["shortlist/probes"], axis=1)
    first = ["shortlist/zero", "shortlist/one", "shortlist/one"]
    op("Slice", ["shortlist/best_ids", *first], ["shortlist/top_id"])
    op("Slice", ["shortlist/best", *first], ["shortlist/top"])
    op("GatherElements", ["shortlist/logits", "shortlist/top_id"], ["shortlist/top_logit"], axis=1)
    op("Sub", ["shortlist/top_logit", "shortlist/top"], ["shortlist/normalizer"])
    shaped("shortlist/log_probs", "shortlist/minus_one", "log_probs")
    shaped("shortlist/best", "n_candidates", "candidate_log_probs")
    shaped("shortlist/best_ids", "n_candidates", "candidate_ids")
    op("Reshape", ["shortlist/normalizer", "shortlist/beams"], ["log_normalizer"])
    shaped("shortlist/probes", "shortlist/n_probes", "probe_log_probs")
    outputs: dict[str, tuple[int, list[str | int]]] = {
        "log_probs": (FLOAT, ["B", "K", "W"]),
        "candidate_log_probs": (FLOAT, ["B", "K", "M"]),
        "candidate_ids": (INT64, ["B", "K", "M"]),
        "log_normalizer": (FLOAT, ["B", "K"]),
        "probe_log_probs": (FLOAT, ["B", "K", "Q"]),
    }
    inputs: dict[str, tuple[int, list[str | int]]] = {
        "n_candidates": (INT64, [1]),
        "probe_ids": (INT64, ["B", "K", "Q"]),
    }
    as_values = [[helper.make_tensor_value_info(n, *entry) for n, entry in side.items()] for side in (outputs, inputs)]
    return nodes, as_values[0], as_values[1]


def _constants() -> list[TensorProto]:
    values = {"shortlist/minus_one": -1, "shortlist/zero": 0, "shortlist/one": 1}
    return [helper.make_tensor(name, INT64, [1], [value]) for name, value in values.items()]


def _width(graph: onnx.GraphProto, path: Path) -> int | str:
    """E, as the portable step has it; engines have it only implicitly, in the layout of their weights."""
    head = _head(graph, path)
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return sizes[head.input[1]][1] if head.op_type == "Gemm" and head.input[1] in sizes else "E"


def _place(graph: onnx.GraphProto, name: str, path: Path) -> dict[str, Any]:
    # A weight stored in fp16 or bf16 is cast before it is used.
    source = next((node.input[0] for node in graph.node if node.op_type == "Cast" and name in node.output), name)
    tensor = next((tensor for tensor in graph.initializer if tensor.name == source), None)
    if tensor is None or tensor.data_location != TensorProto.EXTERNAL:
        raise BuildError(f"{path}: its output projection is not in a file of weights; export the bundle again")
    place = {entry.key: entry.value for entry in tensor.external_data}
    return {
        "file": place["location"],
        "offset": int(place.get("offset", 0)),
        "dtype": TensorProto.DataType.Name(tensor.data_type).lower(),
        "shape": list(tensor.dims),
    }


def _describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [size.dim_param or size.dim_value for size in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}
