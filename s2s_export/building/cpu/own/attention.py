"""Attention of the decoder step, from the rows of one matrix product to those of the next, without transposing
anything.

The portable graph has

    Split(rows) -> Reshape, Transpose for each head -> BeamSelfAttention -> Transpose, Reshape

The operator SelfAttention replaces all of it. It reads the rows of the merged product of queries, keys and values as
they are, and only those cache slots that belong to a beam's history. The caches become [C,B,H,K,D], with the position
outermost, so that they grow without being moved. CrossAttention works likewise.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from ...graphs.graph import Graph
from ...graphs.links import Links, attribute, id_of, replace
from ...graphs.passes import Applied
from ..onnxruntime.products import incompatible_reason
from . import node

TO_HEADS = [0, 2, 1, 3]
BIAS_INPUT = 8  # of BeamSelfAttentionBias
SOURCE_MASK = "source_mask"


def apply(graph: Graph) -> list[Applied]:
    own, cross = Applied("attention over the cache"), Applied("attention over the source")
    over_cache = [n for n in graph.nodes if n.op_type in ("BeamSelfAttention", "BeamSelfAttentionBias")]
    # All of them or none: the runtime's caches have one layout.
    tried = graph.copy()
    reasons = {reason for found in over_cache if (reason := _self_attention(tried, found))}
    for found in over_cache:
        _count(own, min(reasons) if reasons else _self_attention(graph, found))
    for found in [n for n in graph.nodes if n.op_type == "CrossAttention"]:
        _count(cross, _cross_attention(graph, found))
    return [own, cross]


def _count(done: Applied, reason: str) -> None:
    if reason:
        done.left[reason] += 1
    else:
        done.count += 1


def _self_attention(graph: Graph, found: onnx.NodeProto) -> str:
    """Replace the node; returns the reason if that is not possible, or an empty text."""
    links = Links(graph)
    query, key, value, key_cache, value_cache, _, ancestors, position = found.input[:BIAS_INPUT]
    rows = [_rows_of_heads(links, name) for name in (query, key, value)]
    if None in rows:
        return "queries, keys and values are not rows split into heads"
    after = merged(links, found.output[0])
    if after is None:
        return "its output is not read by a merging of heads"
    for cache in (key_cache, value_cache, *found.output[1:]):
        _with_positions_first(graph, cache)
    bias = found.input[BIAS_INPUT] if len(found.input) > BIAS_INPUT else ""
    made = node(
        "SelfAttention",
        [_in_one(graph, found, [name for name in rows if name]), key_cache, value_cache, ancestors, position, bias],
        [after[-1].output[0], *found.output[1:]],
        found.name,
        scale=float(attribute(found, "scale", 1.0)),
    )
    replace(graph, [found, *after], {found.output[0]: made})
    return ""


def _in_one(graph: Graph, found: onnx.NodeProto, rows: list[str]) -> str:
    """The rows [R, 3*H*D] of queries, keys and values side by side.

    In graphs of ours they are parts of one product. A module of one's own has mostly three of the same rows, of which
    one is made; what goes through something else before it is split into heads is joined behind it.
    """
    links = Links(graph)
    split = links.maker(rows[0], "Split")
    if split is not None and rows == list(split.output):
        return str(split.input[0])
    joined = f"{found.name}/rows"
    products = [links.maker(name, "Gemm") for name in rows]
    made = _one_product(graph, [p for p in products if p is not None], joined) if None not in products else None
    if made is None:
        made = helper.make_node("Concat", rows, [joined], name=joined, axis=1)
    place = next(i for i, n in enumerate(graph.nodes) if id_of(n) == id_of(found))
    graph.replace_nodes([*graph.nodes[:place], made, *graph.nodes[place:]])
    return joined


def _one_product(graph: Graph, products: list[onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """The product [R, outputs of all] of products of the same rows with constant weights; None for others."""
    if any(incompatible_reason(graph, product) is not None for product in products):
        return None
    if len({product.input[0] for product in products}) > 1 or len({len(product.input) for product in products}) > 1:
        return None
    weights = [graph.weights[p.input[1]] if attribute(p, "transB") else graph.weights[p.input[1]].T for p in products]
    weight, bias = f"{name}/weight", f"{name}/bias"
    graph.weights[weight] = np.concatenate(weights)
    given = [products[0].input[0], weight]
    if len(products[0].input) > 2:
        graph.weights[bias] = np.concatenate([graph.weights[product.input[2]] for product in products])
        given.append(bias)
    return helper.make_node("Gemm", given, [name], name=name, transB=1)


def _cross_attention(graph: Graph, found: onnx.NodeProto) -> str:
    links = Links(graph)
    query, key, value, mask = found.input
    rows = _rows_of_heads(links, query)
    if rows is None:
        return "its query is not the result of splitting rows into heads"
    if links.before(mask) & set(graph.inputs) != {SOURCE_MASK}:
        return "its mask is not that of the source alone"
    after = merged(links, found.output[0])
    if after is None:
        return "its output is not read by a merging of heads"
    made = node(
        "CrossAttention", [rows, key, value, SOURCE_MASK], [after[-1].output[0]], found.name,
        scale=float(attribute(found, "scale", 1.0)),
    )  # fmt: skip
    replace(graph, [found, *after], {found.output[0]: made})
    return ""


def _with_positions_first(graph: Graph, cache: str) -> None:
    """An input or output [B,H,N,D] of the graph becomes [C,B,H,K,D]."""
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        if value.name == cache:
            sources, heads, _, size = (onnx.TensorShapeProto.Dimension.FromString(d.SerializeToString())
                                       for d in value.type.tensor_type.shape.dim)  # fmt: skip
            positions, beams = (onnx.TensorShapeProto.Dimension(dim_param=letter) for letter in "CK")
            del value.type.tensor_type.shape.dim[:]
            value.type.tensor_type.shape.dim.extend([positions, sources, heads, beams, size])


def shape_of_heads(links: Links, heads: str) -> tuple[str, str] | None:
    """The rows [R, H*D] that were split into `heads` [B,H,K,D], and the name of the sizes B, K, H, D."""
    transposed = links.maker(heads, "Transpose")
    if transposed is None or list(attribute(transposed, "perm", [])) != TO_HEADS:
        return None
    shaped = links.maker(transposed.input[0], "Reshape")
    return (shaped.input[0], shaped.input[1]) if shaped is not None else None


def _rows_of_heads(links: Links, heads: str) -> str | None:
    found = shape_of_heads(links, heads)
    return None if found is None else found[0]


def merged(links: Links, heads: str) -> list[onnx.NodeProto] | None:
    """The two nodes that merge `heads` into rows."""
    transposed = links.only_reader(heads, "Transpose")
    if transposed is None or list(attribute(transposed, "perm", [])) != TO_HEADS:
        return None
    shaped = links.only_reader(transposed.output[0], "Reshape")
    return [transposed, shaped] if shaped is not None and id_of(shaped) else None
