"""Emits a mixture of experts: every expert multiplies only the rows that the router sends to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from .builder import INT64, GraphBuilder
from .structure import Experts, FeedForward


def emit_experts(
    g: GraphBuilder,
    x: str,
    layer: Experts,
    feed_forward: Callable[[str, FeedForward], str],
    sequences: tuple[str, str] | None,
) -> str:
    """x [R,E] -> [R,E].

    sequences: the sizes B and S if the rows are whole sequences, in which an expert takes `layer.capacity` tokens only;
    None for the decoder step, whose every call is a sequence of one token.
    """
    with g.scope("experts"):
        probabilities = g.op("Softmax", [g.linear(x, layer.router.weight, layer.router.bias, "router")], axis=-1)
        chosen = g.op("ArgMax", [probabilities], axis=1, keepdims=1)  # [R,1]
        weight = g.op("ReduceMax", [probabilities, g.constant([1])], keepdims=1)  # [R,1]
        taken = g.op("Equal", [chosen, g.constant(np.arange(len(layer.experts)))])  # [R,n]
        if sequences is not None:
            taken = _within_capacity(g, taken, layer.capacity, len(layer.experts), *sequences)
        total = g.op("Mul", [x, g.constant(0.0, np.float32)])
        for i, expert in enumerate(layer.experts):
            with g.scope(f"expert{i}"):
                column = g.op("Gather", [taken, g.constant(i)], axis=1)
                rows = g.reshape(g.op("NonZero", [column]), [-1])
                found = feed_forward(g.op("Gather", [x, rows], axis=0), expert)
                found = g.op("Mul", [found, g.op("Gather", [weight, rows], axis=0)])
                places = g.op("Unsqueeze", [rows, g.constant([1])])
                total = g.op("ScatterND", [total, places, found])  # a row has one expert at most
        return total


def _within_capacity(g: GraphBuilder, taken: str, capacity: int, n_experts: int, batch: str, length: str) -> str:
    """taken [B*S,n], without the tokens of a sequence that come after the first `capacity` of an expert."""
    counted = g.op("Cast", [g.reshape(taken, [batch, length, n_experts])], to=INT64)
    place = g.op("CumSum", [counted, g.constant(1)])
    fits = g.op("LessOrEqual", [place, g.constant(capacity)])
    both = g.op("And", [g.op("Cast", [counted], to=onnx.TensorProto.BOOL), fits])
    return g.reshape(both, [-1, n_experts])
