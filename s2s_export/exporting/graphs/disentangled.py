"""Disentangled attention (2006.03654, equation 4): what the distances of tokens add to the scores of an encoder.

A score is query . key + query . key_of(distance) + query_of(distance) . key. The keys and queries of the distances are
weights [H,n,D]; each token's products with all n of them are computed once, and a pair of tokens picks its own.
"""

from __future__ import annotations

import numpy as np

from .biases import distances
from .builder import GraphBuilder
from .structure import Attention, Disentangled, Tensor


def disentangled_scores(
    g: GraphBuilder, attention: Attention, terms: Disentangled, query: str, key: str, length: str
) -> str:
    """query and key [B,H,S,D], not scaled -> what is added to the scaled scores [B,H,S,S]."""
    farthest = (len(terms.columns) - 1) // 2
    by_key = distances(g, length)  # key - query
    row = g.op("Sub", [g.constant(farthest), by_key])
    column = g.op("Gather", [g.constant(terms.columns.numpy()), row], axis=0)  # [S,S]: query by key
    parts = []
    if terms.keys is not None:
        parts.append(_picked(g, query, terms.keys, column, "distance_keys"))
    if terms.queries is not None:
        by_query = g.transpose(column, [1, 0])
        parts.append(g.transpose(_picked(g, key, terms.queries, by_query, "distance_queries"), [0, 1, 3, 2]))
    total = parts[0] if len(parts) == 1 else g.op("Add", parts)
    return g.op("Mul", [total, g.constant(attention.scale, np.float32)])


def _picked(g: GraphBuilder, heads: str, vectors: Tensor, column: str, stem: str) -> str:
    """heads [B,H,S,D] times vectors [H,n,D]; of the n products of token i, column[i,j] is taken: [B,H,S,S]."""
    table = g.transpose(g.weight(stem, vectors), [0, 2, 1])
    products = g.op("MatMul", [heads, table])  # [B,H,S,n]
    sizes = g.op("Shape", [products], start=0, end=3)
    index = g.op("Expand", [column, g.op("Concat", [sizes, g.size(column, 1)], axis=0)])
    return g.op("GatherElements", [products, index], axis=3)
