"""Relative positions as vectors that are added to keys and values (1803.02155).

No vectors are made for each head: as in section 3.3 of the paper, the queries of all heads at one position are
multiplied by the vectors of that position. In the decoder every beam is at the same position, so that a distance is a
column of the C positions, which its K slots share.
"""

from __future__ import annotations

from typing import Protocol

from .biases import distances
from .builder import GraphBuilder
from .structure import RelativeVectors


class VectorTerms(Protocol):
    def scores(self, query: str) -> str:
        """query [B,H,K,D], scaled -> what is added to the scores [B,H,K,N]."""
        ...

    def mixed(self, weights: str) -> str:
        """weights [B,H,K,N] -> what is added to the mixed values [B,H,K,D]."""
        ...


class EncoderVectors:
    """Of whole sequences: K and N are S."""

    def __init__(self, g: GraphBuilder, vectors: RelativeVectors, length: str) -> None:
        self._g, self._vectors = g, vectors
        self._rows = _rows(g, vectors, distances(g, length))  # [S,S]

    def scores(self, query: str) -> str:
        g = self._g
        keys = g.op("Gather", [g.weight("relative_keys", self._vectors.keys), self._rows], axis=0)  # [S,S,D]
        return self._by_position(query, g.transpose(keys, [0, 2, 1]))

    def mixed(self, weights: str) -> str:
        g = self._g
        values = g.op("Gather", [g.weight("relative_values", self._vectors.values), self._rows], axis=0)
        return self._by_position(weights, values)

    def _by_position(self, x: str, vectors: str) -> str:
        """x [B,H,S,i], vectors [S,i,o] -> [B,H,S,o]"""
        g = self._g
        first = g.transpose(x, [2, 0, 1, 3])  # [S,B,H,i]
        product = g.op("MatMul", [first, g.op("Unsqueeze", [vectors, g.constant([1])])])
        return g.transpose(product, [1, 2, 0, 3])


class DecoderVectors:
    """Of one step, over the N = C*K slots of a cache."""

    def __init__(self, g: GraphBuilder, vectors: RelativeVectors, position: str, capacity: str, beams: str) -> None:
        self._g, self._vectors, self._beams, self._capacity = g, vectors, beams, capacity
        self._rows = _rows(g, vectors, g.op("Sub", [g.range(capacity), position]))  # [C]

    def scores(self, query: str) -> str:
        g = self._g
        keys = g.op("Gather", [g.weight("relative_keys", self._vectors.keys), self._rows], axis=0)  # [C,D]
        by_time = g.op("Unsqueeze", [g.op("MatMul", [query, g.transpose(keys, [1, 0])]), g.constant([4])])
        by_slot = g.op("Expand", [by_time, g.op("Concat", [g.constant([1, 1, 1, 1]), self._beams], axis=0)])
        return g.reshape(by_slot, [0, 0, 0, -1])  # [B,H,K,N]

    def mixed(self, weights: str) -> str:
        g = self._g
        values = g.op("Gather", [g.weight("relative_values", self._vectors.values), self._rows], axis=0)
        shape = g.op("Concat", [g.constant([0, 0, 0]), self._capacity, self._beams], axis=0)
        by_time = g.op("ReduceSum", [g.op("Reshape", [weights, shape]), g.constant([4])], keepdims=0)
        return g.op("MatMul", [by_time, values])


def _rows(g: GraphBuilder, vectors: RelativeVectors, distance: str) -> str:
    farthest = vectors.farthest
    near = g.op("Min", [g.op("Max", [distance, g.constant(-farthest)]), g.constant(farthest)])
    return g.op("Add", [near, g.constant(farthest)])
