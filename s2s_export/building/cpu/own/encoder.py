"""Attention of the encoder, from the rows of one matrix product to those of the next.

The portable graph has

    Split(rows) -> Reshape, Transpose for each head -> Mul -> TRT_Attention -> Transpose, Reshape

The operator EncoderAttention replaces all of it, whatever the mask adds to the scores: hidden positions, relative
positions, windows. It keeps no matrix of all scores.
"""

from __future__ import annotations

import onnx

from ...graphs.graph import Graph
from ...graphs.links import Links, replace
from ...graphs.passes import Applied
from . import node
from .attention import merged, shape_of_heads

ATTENTION = "TRT_Attention"


def apply(graph: Graph, is_int8: bool) -> Applied:
    """is_int8: whether attention without a mask, as of sound and pictures, multiplies bytes."""
    done = Applied("attention of the encoder")
    for found in [n for n in graph.nodes if n.op_type == ATTENTION]:
        if reason := _replace(graph, found, is_int8):
            done.left[reason] += 1
        else:
            done.count += 1
    return done


def _replace(graph: Graph, found: onnx.NodeProto, is_int8: bool) -> str:
    """Replace the node; returns the reason if that is not possible, or an empty text."""
    links = Links(graph)
    query, key, value, mask, *lengths = (*found.input, "", "", "")[:6]
    if any(lengths):
        return "it has lengths"
    query, scale = _unscaled(graph, links, query)
    parts = [shape_of_heads(links, name) for name in (query, key, value)]
    if any(part is None for part in parts):
        return "queries, keys and values are not rows split into heads"
    rows = [part[0] for part in parts if part is not None]
    split = links.maker(rows[0], "Split")
    sizes = graph.weights.get(split.input[1]) if split is not None and len(split.input) > 1 else None
    if split is None or rows != list(split.output) or sizes is None or len(set(sizes.tolist())) != 1:
        return "queries, keys and values are not equal parts of one product"
    after = merged(links, found.output[0])
    if after is None:
        return "its output is not read by a merging of heads"
    assert parts[0] is not None
    hidden = graph.weights.get(mask)
    if hidden is not None and not hidden.any():  # a window of sound, all of which is looked at
        mask = ""
    made = node(
        "EncoderAttention", [split.input[0], parts[0][1], mask], [after[-1].output[0]], found.name, scale=scale,
        **({"int8": 1} if is_int8 and not mask else {}),
    )  # fmt: skip
    replace(graph, [found, *after], {found.output[0]: made})
    return ""


def _unscaled(graph: Graph, links: Links, query: str) -> tuple[str, float]:
    """The queries before they are multiplied by a constant, and the constant."""
    scaled = links.maker(query, "Mul")
    if scaled is None:
        return query, 1.0
    for one, other in (scaled.input, reversed(scaled.input)):
        factor = graph.weights.get(other)
        if factor is not None and factor.size == 1:
            return one, float(factor.reshape(()))
    return query, 1.0
