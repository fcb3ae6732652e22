"""Emits the parts of a Transformer's layer that know no position: norms, feed-forward layers, joint projections."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .builder import GraphBuilder
from .structure import FeedForward, Heads, Linear, Norm

ACTIVATIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "relu": [("Relu", {})],
    "gelu": [("Gelu", {})],
    "gelu_new": [("Gelu", {"approximate": "tanh"})],
    "gelu_pytorch_tanh": [("Gelu", {"approximate": "tanh"})],
    "tanh": [("Tanh", {})],
    "sigmoid": [("Sigmoid", {})],
    "linear": [],
}
GATED_BY_SIGMOID = {"silu": 1.0, "swish": 1.0, "quick_gelu": 1.702}  # x * sigmoid(a * x)
KNOWN_ACTIVATIONS = sorted([*ACTIVATIONS, *GATED_BY_SIGMOID])


def normed(g: GraphBuilder, x: str, norm: Norm | None) -> str:
    if norm is None:
        return x
    weight = g.weight("norm", norm.weight)
    if norm.bias is None:
        return g.op("RMSNormalization", [x, weight], axis=-1, epsilon=norm.epsilon)
    return g.op("LayerNormalization", [x, weight, g.weight("norm_bias", norm.bias)], axis=-1, epsilon=norm.epsilon)


def feed_forward(g: GraphBuilder, x: str, layer: FeedForward) -> str:
    with g.scope("feed_forward"):
        if layer.gate is None:
            hidden = activation(g, g.linear(x, layer.inner.weight, layer.inner.bias, "inner"), layer.activation)
        else:
            gate, inner = joint(g, x, [layer.gate, layer.inner], "gate_inner")
            hidden = g.op("Mul", [activation(g, gate, layer.activation), inner])
        return g.linear(hidden, layer.outer.weight, layer.outer.bias, "outer")


def activation(g: GraphBuilder, x: str, name: str) -> str:
    if name in GATED_BY_SIGMOID:
        factor = GATED_BY_SIGMOID[name]
        inside = x if factor == 1.0 else g.op("Mul", [x, g.constant(factor, np.float32)])
        return g.op("Mul", [x, g.op("Sigmoid", [inside])])
    for op_type, attributes in ACTIVATIONS[name]:
        x = g.op(op_type, [x], **attributes)
    return x


def joint(g: GraphBuilder, rows: str, parts: list[Linear], stem: str) -> list[str]:
    """Several projections of the same rows, computed by one product and split afterwards."""
    weight = torch.cat([part.weight for part in parts])
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat([torch.zeros(p.weight.shape[0]) if p.bias is None else p.bias.float() for p in parts])
    sizes = g.constant([part.weight.shape[0] for part in parts])
    return g.ops("Split", [g.linear(rows, weight, bias, stem), sizes], len(parts), axis=-1)


def merge_heads(g: GraphBuilder, x: str, attention: Heads) -> str:
    """[B,H,S,D] -> [B*S, H*D]"""
    return g.reshape(g.transpose(x, [0, 2, 1, 3]), [-1, attention.n_heads * attention.head_size])
