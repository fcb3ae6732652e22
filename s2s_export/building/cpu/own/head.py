"""The output projection and all that a search asks of it become one node, which never stores the logits."""

from __future__ import annotations

from onnx import TensorProto, helper

from ...graphs.graph import Graph
from ...graphs.links import Links, attribute
from ...graphs.passes import Applied
from ..onnxruntime.ondemand import LEFT_OUT, PREFIX
from ..onnxruntime.products import incompatible_reason
from . import node
from .packing import Store
from .products import bias_of

OUTPUTS = ("candidate_log_probs", "candidate_ids", "log_normalizer", "probe_log_probs", "log_probs")
WANTED = f"{PREFIX}log_probs"
INPUTS = ("n_candidates", "probe_ids", WANTED)


def apply(graph: Graph, store: Store) -> Applied:
    done = Applied("output projection with candidates")
    links = Links(graph)
    softmax = next((n for n in graph.nodes if n.op_type == "LogSoftmax"), None)
    product = links.makers.get(softmax.input[0]) if softmax is not None else None
    reason = "there is no product before a log-softmax" if product is None else incompatible_reason(graph, product)
    if product is None or reason is not None:
        done.left[reason or "there is no product before a log-softmax"] += 1
        return done
    after = links.after(product.output[0])
    if set(graph.outputs) & after != {*OUTPUTS, *LEFT_OUT}:
        done.left["the logits are used for other outputs than candidates"] += 1
        return done
    weight, packed = store.add(graph, product.input[1], bool(attribute(product, "transB")))
    made = node(
        packed.operator("Head"),
        [product.input[0], *weight, bias_of(graph, product), *INPUTS],
        list(OUTPUTS),
        product.name,
        n_out=packed.n_out,
    )
    graph.replace_nodes([*(n for n in graph.nodes if not after.intersection(n.output)), made])
    graph.model.graph.input.append(helper.make_tensor_value_info(WANTED, TensorProto.BOOL, []))
    done.count += 1
    return done
