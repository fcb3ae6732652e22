"""torch's fused attention with a mask, as the operators that it stands for.

ONNX Runtime's Attention takes no mask that is one for all queries, as that of a source's padding is, and torch.onnx
writes it for four axes only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from .views import aten, call, tensor_of

HIDDEN = -1e9  # the scores of what a mask hides; its exp is 0 in fp32
NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def spell_out(program: Any) -> None:
    """Replaces the attentions with a mask, or with other than four axes, in a traced program."""
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        given: dict[str, Any] = {**dict(zip(NAMES, node.args, strict=False)), **node.kwargs}
        query, mask = tensor_of(given["query"]), given.get("attn_mask")
        if query is None or given.get("dropout_p") or given.get("is_causal"):
            continue
        if mask is not None or query.dim() != 4:
            with graph.inserting_before(node):
                node.replace_all_uses_with(_attention(graph, given, query))
            graph.erase_node(node)
    program.graph_module.recompile()


def _attention(graph: Any, given: dict[str, Any], query: torch.Tensor) -> Node:
    key, value, mask = given["key"], given["value"], given.get("attn_mask")
    if given.get("enable_gqa"):
        repeats = [query.shape[-3] // part.meta["val"].shape[-3] for part in (key, value)]
        key, value = (
            call(graph, aten.repeat_interleave.self_int, part, n, -3)
            for part, n in zip((key, value), repeats, strict=True)
        )
    scale = given.get("scale")
    scaled = call(graph, aten.mul.Tensor, given["query"], query.shape[-1] ** -0.5 if scale is None else scale)
    scores = call(graph, aten.matmul.default, scaled, call(graph, aten.transpose.int, key, -2, -1))
    if mask is not None and mask.meta["val"].dtype is torch.bool:
        scores = call(graph, aten.masked_fill.Scalar, scores, call(graph, aten.logical_not.default, mask), HIDDEN)
    elif mask is not None:
        scores = call(graph, aten.add.Tensor, scores, mask)
    return call(graph, aten.matmul.default, call(graph, aten.softmax.int, scores, -1), value)
