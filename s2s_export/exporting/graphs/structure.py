"""The parts of a Transformer encoder-decoder, independent of the names that a library gives them.

A family fills these classes in from its PyTorch model, and `transformer.py` emits graphs from them. Tensors are views
of the model's own. Letters: V vocabulary, E model width, H heads, D head size, F inner width, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Linear:
    """weight [out, in], bias [out] or None."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, module: torch.nn.Linear) -> Linear:
        return cls(module.weight, module.bias)


@dataclass(frozen=True)
class Norm:
    """LayerNorm over E, or RMSNorm if there is no bias. weight [E], bias [E] or None."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float

    @classmethod
    def of(cls, module: torch.nn.LayerNorm) -> Norm:
        return cls(module.weight, module.bias, module.eps)


@dataclass(frozen=True)
class Attention:
    """Projections of one attention: query, key, value [H*D, E], output [E, H*D]. scale multiplies the scores."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    n_heads: int
    scale: float

    @property
    def head_size(self) -> int:
        return self.query.weight.shape[0] // self.n_heads


@dataclass(frozen=True)
class FeedForward:
    """outer(activation(inner(x))), or outer(activation(gate(x)) * inner(x)) if there is a gate."""

    inner: Linear
    outer: Linear
    activation: str
    gate: Linear | None = None


@dataclass(frozen=True)
class Block:
    """One layer. Encoder blocks have no cross-attention."""

    self_attention: Attention
    self_norm: Norm
    feed_forward: FeedForward
    feed_forward_norm: Norm
    cross_attention: Attention | None = None
    cross_norm: Norm | None = None


@dataclass(frozen=True)
class PositionTable:
    """Row `offset + t` of table [P, E] is added at position t.

    padding_id: if set, a padding token gets row `padding_id` instead and does not advance the position (M2M100).
    """

    table: Tensor
    offset: int = 0
    padding_id: int | None = None


@dataclass(frozen=True)
class RelativePositions:
    """Bias added to the scores of every layer, by head and distance (1910.10683, section 2.1).

    by_distance [H, n]: column i is for the distance key - query = first + i. A distance beyond an end takes that end's.
    """

    by_distance: Tensor
    first: int


@dataclass(frozen=True)
class Convolution:
    """Along time: weight [out, in, width], bias [out]. Padded by width // 2 zeros at both ends, then GELU."""

    weight: Tensor
    bias: Tensor
    stride: int


@dataclass(frozen=True)
class Stem:
    """What an encoder of sound has in place of an embedding: convolutions, one behind the other (2212.04356).

    n_frames: T of the features [B, F, T] that it takes, always the same; F is the first convolution's `in`.
    """

    convolutions: tuple[Convolution, ...]
    n_frames: int


@dataclass(frozen=True)
class Stack:
    """Encoder or decoder: embedding [V, E] (or a stem), positions, blocks, and the norms around them."""

    embedding: Tensor | Stem
    embedding_scale: float
    positions: PositionTable | RelativePositions
    blocks: tuple[Block, ...]
    embedding_norm: Norm | None = None
    final_norm: Norm | None = None

    @property
    def width(self) -> int:
        """E"""
        if isinstance(self.embedding, Stem):
            return self.embedding.convolutions[-1].weight.shape[0]
        return self.embedding.shape[1]


@dataclass(frozen=True)
class Transformer:
    """norm_first: whether blocks are pre-norm. head: [V, E] and bias [V]. head_scale multiplies the head's input.

    alignment_heads: (layer, head) of the cross-attention weights that the decoder step gives; None for all of them.
    """

    EMITTER: ClassVar[str] = ".transformer"

    encoder: Stack
    decoder: Stack
    norm_first: bool
    head: Linear
    head_scale: float = 1.0
    alignment_heads: tuple[tuple[int, int], ...] | None = None

    def sizes(self) -> dict[str, int]:
        """Sizes for the manifest."""
        attention, source = self.decoder.blocks[0].self_attention, self.encoder.embedding
        return {
            "vocabulary_size": self.head.weight.shape[0],
            **({} if isinstance(source, Stem) else {"source_vocabulary_size": source.shape[0]}),
            "width": self.decoder.width,
            "encoder_layers": len(self.encoder.blocks),
            "decoder_layers": len(self.decoder.blocks),
            "heads": attention.n_heads,
            "head_size": attention.head_size,
            "feed_forward": self.decoder.blocks[0].feed_forward.inner.weight.shape[0],
        }
