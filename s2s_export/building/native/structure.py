"""A Transformer's parts with their weights as arrays, as they were read from a bundle's graphs.

Weights are [O, I]. `place` says where a weight is in the bundle, so that one that several parts share is stored once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Weight:
    array: Array
    place: str


@dataclass(frozen=True)
class Linear:
    weight: Weight
    bias: Array | None


@dataclass(frozen=True)
class Norm:
    """LayerNorm, or RMSNorm where there is no bias."""

    weight: Array
    bias: Array | None
    epsilon: float


@dataclass(frozen=True)
class Distances:
    """table [H, n]: added to the scores, by head and distance key - query, of which the first is `first`."""

    table: Array
    first: int


@dataclass(frozen=True)
class Attention:
    """rows: queries, keys and values [3*H*D, E]; in cross-attention queries [H*D, E]."""

    rows: Linear
    output: Linear
    scale: float
    distances: Distances | None
    heads: int
    head_size: int


@dataclass(frozen=True)
class FeedForward:
    """inner: with a gate, the gate's rows and then the product's."""

    inner: Linear
    outer: Linear
    activation: str
    gated: bool


@dataclass(frozen=True)
class Part:
    """An attention or a feed-forward layer with its norm."""

    layer: Attention | FeedForward
    norm: Norm


@dataclass(frozen=True)
class Convolution:
    """weight [O, size, I]: over `size` positions, of which the first is `padding` before the output's, times `step`."""

    weight: Array
    bias: Array | None
    step: int
    padding: int
    activation: str


@dataclass(frozen=True)
class Positions:
    table: Weight
    offset: int
    padding_id: int | None = None
    padding_moves: bool = False


@dataclass(frozen=True)
class Stack:
    """parts: of all layers in order; two a layer in the encoder, three in the decoder. stem: what makes the stream of
    features, in place of an embedding."""

    norm_first: bool
    embedding: Weight | None
    embedding_scale: float
    positions: Positions | None
    embedding_norm: Norm | None
    final_norm: Norm | None
    parts: tuple[Part, ...]
    stem: tuple[Convolution, ...] = ()


@dataclass(frozen=True)
class Structure:
    """cross: keys and values of each decoder layer, [2*H*D, E of the encoder]."""

    encoder: Stack
    decoder: Stack
    cross: tuple[Linear, ...]
    head: Linear
    head_scale: float
