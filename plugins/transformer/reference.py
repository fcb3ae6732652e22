"""What the Transformer's kernels compute, in numpy and float64. The kernels are tested against this.

Letters as in parameters.h. Weights are [O, I], unpacked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def activated(x: NDArray[Any], name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        if name == "relu":
            return np.maximum(x, 0)
        if name == "gelu":
            return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
        if name == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        if name in ("silu", "quick_gelu"):
            return x / (1 + np.exp(-(1.702 if name == "quick_gelu" else 1.0) * x))
        if name == "tanh":
            return np.tanh(x)
        if name == "sigmoid":
            return 1 / (1 + np.exp(-x))
    return x


def windows(x: NDArray[Any], size: int, step: int, padding: int, inputs: int) -> NDArray[Any]:
    """x [B, length, channels]: the rows [B, S, inputs] of which a convolution is a product."""
    padded = np.pad(x, ((0, 0), (padding, padding), (0, 0)))
    found = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::step].swapaxes(2, 3)
    rows = found.reshape(*found.shape[:2], -1)
    return np.pad(rows, ((0, 0), (0, 0), (0, inputs - rows.shape[2])))


def normed(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None, epsilon: float, true_width: int
) -> NDArray[Any]:
    """Of rows [R, E], whose first `true_width` columns count."""
    real = x[:, :true_width]
    mean = 0.0 if bias is None else real.mean(axis=1, keepdims=True)
    factor = 1 / np.sqrt(np.square(real - mean).mean(axis=1, keepdims=True) + epsilon)
    return (x - mean) * factor * weight + (0.0 if bias is None else bias)


def product(
    rows: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None = None,
    activation: str = "linear",
    gate: NDArray[Any] | None = None,
    gate_bias: NDArray[Any] | None = None,
    scale: float = 1.0,
) -> NDArray[Any]:
    """activation(scale * rows weight^T + bias); with a gate, activation(of the gate) times the product."""
    inner = scale * (rows @ weight.T) + (0.0 if bias is None else bias)
    if gate is None:
        return activated(inner, activation)
    return activated(scale * (rows @ gate.T) + (0.0 if gate_bias is None else gate_bias), activation) * inner


def attention(
    query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], visible: NDArray[np.bool_], scale: float,
    bias: NDArray[Any] | None = None,
) -> NDArray[Any]:  # fmt: skip
    """query [..., Q, D] over key, value [..., P, D] that are visible [..., Q, P]; bias is added to the scores.

    A query that sees nothing gets the mean of all values.
    """
    scores = scale * (query @ np.swapaxes(key, -1, -2)) + (0.0 if bias is None else bias)
    scores = np.where(visible, scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0.0))
    weights = np.where(visible.any(axis=-1, keepdims=True), weights, 1.0)
    return (weights / weights.sum(axis=-1, keepdims=True)) @ value


def biases(table: NDArray[Any], first: int, distances: NDArray[np.int64]) -> NDArray[Any]:
    """table [H, n] at distances [...]: [H, ...]."""
    return table[:, np.clip(distances - first, 0, table.shape[1] - 1)]


def lstm(x: NDArray[Any], h: NDArray[Any], cell: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Hidden states and cells [R, U]. x, h [4, R, U]: what the gates i, f, g, o get of the input and of the state."""
    i, f, g, o = x + h
    after = activated(f, "sigmoid") * cell + activated(i, "sigmoid") * np.tanh(g)
    return activated(o, "sigmoid") * np.tanh(after), after


def gru(x: NDArray[Any], h: NDArray[Any], state: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Hidden states [R, U], twice. x, h [3, R, U]: what r, z, n get; the reset gate multiplies the state's product."""
    candidate = np.tanh(x[2] + activated(x[0] + h[0], "sigmoid") * h[2])
    after = candidate + activated(x[1] + h[1], "sigmoid") * (state - candidate)
    return after, after


def additive(query: NDArray[Any], keys: NDArray[Any], energy: NDArray[Any]) -> NDArray[Any]:
    """Scores [B, K, S] of query [B, K, U] for keys [B, S, U] (1409.0473, section A.1.2)."""
    return np.tanh(query[:, :, None] + keys[:, None]) @ energy


def softmax_mean(scores: NDArray[Any], values: NDArray[Any], visible: NDArray[np.bool_]) -> NDArray[Any]:
    """values [B, S, A] weighted with the softmax of scores [B, K, S] over the visible positions [B, S]; the mean of all
    where none is visible."""
    scores = np.where(visible[:, None], scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0.0))
    weights = np.where(visible.any(axis=-1)[:, None, None], weights, 1.0)
    return (weights / weights.sum(axis=-1, keepdims=True)) @ values
