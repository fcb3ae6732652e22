"""Attention of the decoder step, from the rows of its product to the rows of the next, without splits and transposes.

The portable graph says

    Split(rows) -> Reshape, Transpose for each head -> BeamSelfAttention -> Transpose, Reshape

and the operator SelfAttention reads the rows of the joint product of queries, keys and values as they are, and of the
cache only the positions that a beam's history goes through. CrossAttention likewise.
"""

from __future__ import annotations

import onnx

from ...lowering.graph import Graph
from .. import Applied
from . import node
from .links import Links, attribute, id_of, replace

TO_HEADS = [0, 2, 1, 3]
BIAS_INPUT = 8  # of BeamSelfAttentionBias
SOURCE_MASK = "source_mask"


def apply(graph: Graph) -> list[Applied]:
    own, cross = Applied("attention over the cache"), Applied("attention over the source")
    for found in graph.nodes:
        if found.op_type in ("BeamSelfAttention", "BeamSelfAttentionBias"):
            _count(own, _self_attention(graph, found))
        elif found.op_type == "CrossAttention":
            _count(cross, _cross_attention(graph, found))
    return [own, cross]


def _count(done: Applied, reason: str) -> None:
    if reason:
        done.left[reason] += 1
    else:
        done.count += 1


def _self_attention(graph: Graph, found: onnx.NodeProto) -> str:
    """Replace it, or say why not."""
    links = Links(graph)
    query, key, value, key_cache, value_cache, _, ancestors, position = found.input[:BIAS_INPUT]
    rows = [_rows_of_heads(links, name) for name in (query, key, value)]
    split = links.maker(rows[0] or "", "Split")
    if split is None or rows != list(split.output):
        return "queries, keys and values are no equal parts of one product"
    sizes = graph.weights.get(split.input[1]) if len(split.input) > 1 else None
    if sizes is None or len(set(sizes.tolist())) != 1:
        return "queries, keys and values are no equal parts of one product"
    after = _merged(links, found.output[0])
    if after is None:
        return "what reads it is no merging of heads"
    bias = found.input[BIAS_INPUT] if len(found.input) > BIAS_INPUT else ""
    made = node(
        "SelfAttention",
        [split.input[0], key_cache, value_cache, ancestors, position, bias],
        [after[-1].output[0], *found.output[1:]],
        found.name,
        scale=float(attribute(found, "scale", 1.0)),
    )
    replace(graph, [found, *after], {found.output[0]: made})
    return ""


def _cross_attention(graph: Graph, found: onnx.NodeProto) -> str:
    links = Links(graph)
    query, key, value, mask = found.input
    rows = _rows_of_heads(links, query)
    if rows is None:
        return "its query is no split of rows into heads"
    if links.before(mask) & set(graph.inputs) != {SOURCE_MASK}:
        return "its mask is not the source's alone"
    after = _merged(links, found.output[0])
    if after is None:
        return "what reads it is no merging of heads"
    made = node(
        "CrossAttention", [rows, key, value, SOURCE_MASK], [after[-1].output[0]], found.name,
        scale=float(attribute(found, "scale", 1.0)),
    )  # fmt: skip
    replace(graph, [found, *after], {found.output[0]: made})
    return ""


def _rows_of_heads(links: Links, heads: str) -> str | None:
    """The rows [R, H*D] that were split into `heads` [B,H,K,D]."""
    transposed = links.maker(heads, "Transpose")
    if transposed is None or list(attribute(transposed, "perm", [])) != TO_HEADS:
        return None
    shaped = links.maker(transposed.input[0], "Reshape")
    return shaped.input[0] if shaped is not None else None


def _merged(links: Links, heads: str) -> list[onnx.NodeProto] | None:
    """The two nodes that make rows of `heads`."""
    transposed = links.only_reader(heads, "Transpose")
    if transposed is None or list(attribute(transposed, "perm", [])) != TO_HEADS:
        return None
    shaped = links.only_reader(transposed.output[0], "Reshape")
    return [transposed, shaped] if shaped is not None and id_of(shaped) else None
