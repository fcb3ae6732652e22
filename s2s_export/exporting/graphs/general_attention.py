"""Attention that our domains' functions don't compute: grouped queries, soft caps, rotary and relative positions.

Letters: G heads of keys and values, P = H/G heads of the query that share one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .builder import GraphBuilder
from .functions import NATIVE
from .relative_vectors import VectorTerms
from .structure import Heads, Rotary


class Angles:
    """The rows of rotary tables at some positions, gathered once for all layers."""

    def __init__(self, g: GraphBuilder, positions: str) -> None:
        self._g, self._positions = g, positions
        self._rows: dict[int, tuple[str, str]] = {}

    def turn(self, heads: str, rotary: Rotary) -> str:
        """heads [B,H,S,D], turned by the angles of the positions [S] (or [1], the same for all beams)."""
        g, half = self._g, rotary.cosine.shape[1]
        if id(rotary) not in self._rows:
            tables = g.weight("rotary_cosine", rotary.cosine), g.weight("rotary_sine", rotary.sine)
            once, sine = (g.op("Gather", [table, self._positions], axis=0) for table in tables)
            both = g.op("Concat", [once, once], axis=-1)
            self._rows[id(rotary)] = both, g.op("Concat", [g.op("Neg", [sine]), sine], axis=-1)
        cosine, sines = self._rows[id(rotary)]
        first, second = g.ops("Split", [heads, g.constant([half, half])], 2, axis=-1)
        turned = g.op("Mul", [g.op("Concat", [second, first], axis=-1), sines])
        return g.op("Add", [g.op("Mul", [heads, cosine]), turned])


def split_heads(g: GraphBuilder, rows: str, n_heads: int, head_size: int, batch: str, length: str) -> str:
    """[B*S, H*D] -> [B,H,S,D]"""
    return g.transpose(g.reshape(rows, [batch, length, n_heads, head_size]), [0, 2, 1, 3])


def soft_capped(g: GraphBuilder, scores: str, cap: float) -> str:
    factor = g.constant(cap, np.float32)
    return g.op("Mul", [g.op("Tanh", [g.op("Div", [scores, factor])]), factor])


def attend(
    g: GraphBuilder,
    attention: Heads,
    query: str,
    key: str,
    value: str,
    mask: str,
    vectors: VectorTerms | None = None,
) -> tuple[str, str]:
    """query [B,H,K,D], key and value [B,G,N,D], mask additive [B,1|H,1|K,N] -> mixed [B,H,K,D], weights [B,H,K,N].

    vectors: what relative positions add, or None.
    """
    groups, heads = attention.key_heads, attention.n_heads
    shared = g.constant([2])
    query = g.op("Mul", [query, g.constant(attention.scale, np.float32)])
    by_group = g.reshape(query, [0, groups, heads // groups, -1, attention.head_size])  # [B,G,P,K,D]
    keys = g.op("Unsqueeze", [g.transpose(key, [0, 1, 3, 2]), shared])  # [B,G,1,D,N]
    scores = _by_head(g, g.op("MatMul", [by_group, keys]), heads)  # [B,H,K,N]
    if vectors is not None:
        scores = g.op("Add", [scores, vectors.scores(query)])
    if attention.soft_cap is not None:
        scores = soft_capped(g, scores, attention.soft_cap)
    weights = g.op("Softmax", [g.op("Add", [scores, mask])], axis=-1)
    sizes = g.op("Shape", [scores], start=2, end=4)
    shape = g.op("Concat", [g.constant([0, groups, heads // groups]), sizes], axis=0)
    mixed = g.op("MatMul", [g.op("Reshape", [weights, shape]), g.op("Unsqueeze", [value, shared])])
    by_head = _by_head(g, mixed, heads)
    return by_head if vectors is None else g.op("Add", [by_head, vectors.mixed(weights)]), weights


def _by_head(g: GraphBuilder, value: str, heads: int) -> str:
    """[B,G,P,K,x] -> [B,H,K,x]"""
    sizes = g.op("Shape", [value], start=3, end=5)
    return g.op("Reshape", [value, g.op("Concat", [g.constant([0, heads]), sizes], axis=0)])


def attend_to_cache(
    g: GraphBuilder,
    attention: Heads,
    heads: Sequence[str],
    cache: Sequence[str],
    mask: str,
    position: str,
    bias: str | None,
    batch: str,
    beams: str,
    vectors: VectorTerms | None = None,
) -> tuple[str, list[str]]:
    """As BeamSelfAttention(Bias): writes K slots, attends to all that mask [B,1,K,N] shows; also gives the caches."""
    query, *written = heads
    updated = _updated(g, cache, written, position, batch, beams)
    mixed, _ = attend(g, attention, query, updated[0], updated[1], _with_bias(g, mask, bias, beams), vectors)
    return mixed, updated


def attend_to_both(
    g: GraphBuilder,
    attention: Heads,
    heads: Sequence[str],
    cache: Sequence[str],
    source: Sequence[str],
    mask: str,
    source_mask: str,
    position: str,
    bias: str | None,
    batch: str,
    beams: str,
) -> tuple[str, str, list[str]]:
    """As `attend_to_cache`, with the keys and values source [B,G,S,D] under the same softmax; source_mask [B,1,1,S].

    Returns the mixed values, the weights of the source [B,H,K,S], and the caches.
    """
    query, *written = heads
    updated = _updated(g, cache, written, position, batch, beams)
    key, value = (g.op("Concat", [own, other], axis=2) for own, other in zip(updated, source, strict=True))
    length = g.size(source_mask, 3)
    n_heads = g.constant([attention.n_heads])
    sizes = g.op("Concat", [batch, n_heads, beams, g.size(updated[0], 2)], axis=0)
    own_mask = g.op("Expand", [_with_bias(g, mask, bias, beams), sizes])
    other_mask = g.op("Expand", [source_mask, g.op("Concat", [batch, n_heads, beams, length], axis=0)])
    mixed, weights = attend(g, attention, query, key, value, g.op("Concat", [own_mask, other_mask], axis=3))
    parts = g.op("Concat", [g.size(updated[0], 2), length], axis=0)
    return mixed, g.ops("Split", [weights, parts], 2, axis=3)[1], updated


def _updated(
    g: GraphBuilder, cache: Sequence[str], written: Sequence[str], position: str, batch: str, beams: str
) -> list[str]:
    """The caches, whose slots of this position hold what was written."""
    index = g.op("Expand", [g.op("Mul", [position, beams]), batch])
    return [
        g.op("TRT_KVCacheUpdate", [old, new, index], domain=NATIVE) for old, new in zip(cache, written, strict=True)
    ]


def _with_bias(g: GraphBuilder, mask: str, bias: str | None, beams: str) -> str:
    """mask [B,1,K,N] and bias [1,H,1,C], which is the same for the K slots of a position."""
    if bias is not None:
        by_beam = g.op("Unsqueeze", [bias, g.constant([4])])  # [1,H,1,C,1]
        repeated = g.op("Expand", [by_beam, g.op("Concat", [g.constant([1, 1, 1, 1]), beams], axis=0)])
        mask = g.op("Add", [mask, g.reshape(repeated, [0, 0, 0, -1])])
    return mask
