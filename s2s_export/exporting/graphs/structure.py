"""The parts of a Transformer encoder-decoder, independent of the names that a library gives them.

A family fills these classes in from its PyTorch model, and `transformer.py` emits graphs from them. Tensors are views
of the model's own. Letters: V vocabulary, E model width, H heads, D head size, F inner width, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

if TYPE_CHECKING:
    from .builder import GraphBuilder

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
class RelativePositions:
    """Bias added to the scores, by head and distance (1910.10683, section 2.1).

    by_distance [H, n]: column i is for the distance key - query = first + i. A distance beyond an end takes that end's.
    """

    by_distance: Tensor
    first: int


@dataclass(frozen=True)
class PairBias:
    """Bias added to the scores of an encoder whose sources all have the same S. by_pair: [H, S, S], query by key."""

    by_pair: Tensor


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (2104.09864): queries and keys at position p are turned by row p of cosine and sine [P, D/2].

    The halves of a head are turned against each other: (a, b) becomes (a cosine - b sine, b cosine + a sine).
    """

    cosine: Tensor
    sine: Tensor


@dataclass(frozen=True)
class RelativeVectors:
    """Vectors added to keys and values, by distance (1803.02155, equations 3 and 4): keys, values [2m + 1, D].

    Row m + d is for the distance d = key - query; a distance beyond m takes m's.
    """

    keys: Tensor
    values: Tensor

    @property
    def farthest(self) -> int:
        """m"""
        return (len(self.keys) - 1) // 2


@dataclass(frozen=True)
class Disentangled:
    """Keys and queries of distances (2006.03654, equation 4): keys, queries [H, n, D], either may be None.

    columns [2P - 1]: which of the n a distance query - key has; column P - 1 + d is for the distance d.
    """

    columns: Tensor
    keys: Tensor | None
    queries: Tensor | None


class Heads(Protocol):
    """What is computed of queries, keys and values, whatever made them."""

    @property
    def n_heads(self) -> int: ...

    @property
    def key_heads(self) -> int: ...

    @property
    def head_size(self) -> int: ...

    @property
    def scale(self) -> float: ...

    @property
    def soft_cap(self) -> float | None: ...


@dataclass(frozen=True)
class Attention:
    """Projections of one attention: query [H*D, E], key, value [G*D, E], output [E, H*D]. scale multiplies the scores.

    n_key_heads: G, of which each serves H/G heads of the query (2305.13245); None for as many as the query has.
    relative: the bias of this layer alone; a bias that all layers share is the stack's.
    rotary: None in cross-attention and where positions are added to the embeddings.
    window: the farthest keys that a query sees, as distances (before, after); None for all.
    soft_cap: scores become soft_cap * tanh(score / soft_cap) (2408.00118, section 2).
    query_norm, key_norm: of every head's query and key, weight [D], before they are turned (2302.05442).
    block_norm: norm of the summed blocks that an encoder's queries see as well; their size is the stack's.
    relative_vectors: of self-attention, added to its keys and values; None for most.
    disentangled: of an encoder's self-attention, what distances add to the scores; None for most.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    n_heads: int
    scale: float
    n_key_heads: int | None = None
    relative: RelativePositions | PairBias | None = None
    rotary: Rotary | None = None
    window: tuple[int, int] | None = None
    soft_cap: float | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    block_norm: Norm | None = None
    relative_vectors: RelativeVectors | None = None
    disentangled: Disentangled | None = None

    @property
    def head_size(self) -> int:
        return self.query.weight.shape[0] // self.n_heads

    @property
    def key_heads(self) -> int:
        return self.n_key_heads or self.n_heads

    @property
    def is_plain(self) -> bool:
        """Whether it is softmax(query . key + mask) with a key head for every head, which kernels of ours compute."""
        return self.key_heads == self.n_heads and self.soft_cap is None and self.relative_vectors is None


@dataclass(frozen=True)
class FeedForward:
    """outer(activation(inner(x))), or outer(activation(gate(x)) * inner(x)) if there is a gate."""

    inner: Linear
    outer: Linear
    activation: str
    gate: Linear | None = None


@dataclass(frozen=True)
class Experts:
    """A mixture of experts (2101.03961): each row goes to the expert of the largest probability, which multiplies it.

    router: [n, E], whose softmax is the probability of each expert.
    capacity: how many tokens of a sequence an expert takes, first come first served; the others' rows become zero.
    """

    router: Linear
    experts: tuple[FeedForward, ...]
    capacity: int

    @property
    def inner(self) -> Linear:
        return self.experts[0].inner


@dataclass(frozen=True)
class Block:
    """One layer. Encoder blocks have no cross-attention.

    The norms called `after` are of a sublayer's output, before it is added to the residual (2408.00118).
    is_merged: self-attention sees the keys and values of the source as well, those of `cross_attention`, under one
    softmax (2512.14856); there is no sublayer of its own then, and no cross_norm.
    self_norm: None where a first layer reads what is normed already.
    is_parallel: attention and feed-forward read the same norm, self_norm, and both are added to the residual at once;
    of decoders alone.
    """

    self_attention: Attention
    self_norm: Norm | None
    feed_forward: FeedForward | Experts
    feed_forward_norm: Norm
    cross_attention: Attention | None = None
    cross_norm: Norm | None = None
    after_self: Norm | None = None
    after_cross: Norm | None = None
    after_feed_forward: Norm | None = None
    is_merged: bool = False
    is_parallel: bool = False


@dataclass(frozen=True)
class PositionTable:
    """Row `offset + t` of table [P, E] is added at position t.

    padding_id: if set, a padding token gets row `padding_id` instead and does not advance the position (M2M100).
    padding_row_moves: a padding token of the decoder gets row `padding_id + t` (FSMT).
    """

    table: Tensor
    offset: int = 0
    padding_id: int | None = None
    padding_row_moves: bool = False


@dataclass(frozen=True)
class SummedBlocks:
    """Transient global attention of an encoder (2112.07916, section 3.1.2): one more key for each block.

    A block is `size` tokens. Its key and value are those of the sum of its tokens; tokens after the last whole block
    belong to it. relative: the bias for the distance block - block of the query.
    """

    size: int
    relative: RelativePositions


class Stem:
    """What an encoder that reads no ids has in place of an embedding. Its kinds are in stems.py and shifted_windows.py.

    input: the name of the encoder's input, float32 [B, *shape]. width: E of what `emit` computes. is_masked: whether
    sources differ in length, so that the encoder needs their mask.
    """

    input: ClassVar[str]
    is_masked: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int | str, ...]:
        raise NotImplementedError

    @property
    def width(self) -> int:
        raise NotImplementedError

    def emit(self, g: GraphBuilder, x: str) -> str:
        """[B, *shape] -> [B,S,E]"""
        raise NotImplementedError


@dataclass(frozen=True)
class Stack:
    """Encoder or decoder: embedding [V, E] (or a stem), positions, blocks, and the norms around them.

    positions: a table that is added to the embeddings, a bias of the scores that all layers share, or None where the
    attention of each layer has its own. token_norm is of tokens without positions, embedding_norm of their sum.
    replaced_token: an id and the vector [E] that it has in place of its scaled embedding.
    types: [n, W], what a token of each type has more than one of type 0; None where the encoder reads no types.
    projection: [E, W] after the embedding norm, where embeddings have another width W than the blocks (1909.11942).
    """

    embedding: Tensor | Stem
    embedding_scale: float
    positions: PositionTable | RelativePositions | None
    blocks: tuple[Block, ...]
    embedding_norm: Norm | None = None
    final_norm: Norm | None = None
    token_norm: Norm | None = None
    blocks_seen: SummedBlocks | None = None
    replaced_token: tuple[int, Tensor] | None = None
    types: Tensor | None = None
    projection: Linear | None = None

    @property
    def width(self) -> int:
        """E"""
        return self.embedding_width if self.projection is None else self.projection.weight.shape[0]

    @property
    def embedding_width(self) -> int:
        """W"""
        return self.embedding.width if isinstance(self.embedding, Stem) else self.embedding.shape[1]


@dataclass(frozen=True)
class HeadTransform:
    """norm(activation(dense(x))), which BERT computes before its output projection."""

    dense: Linear
    activation: str
    norm: Norm


@dataclass(frozen=True)
class Transformer:
    """norm_first: whether blocks are pre-norm. head: [V, E] and bias [V]. head_scale multiplies the head's input.

    alignment_heads: (layer, head) of the cross-attention weights that the decoder step gives; None for all of them.
    decoder_norm_first: the decoder's, if it is not the encoder's. bridge: projects the encoder's states to the width
    that cross-attention reads. head_transform: before the head. soft_cap: of the logits, as `Attention.soft_cap`.
    """

    EMITTER: ClassVar[str] = ".transformer"

    encoder: Stack
    decoder: Stack
    norm_first: bool
    head: Linear
    head_scale: float = 1.0
    alignment_heads: tuple[tuple[int, int], ...] | None = None
    decoder_norm_first: bool | None = None
    bridge: Linear | None = None
    head_transform: HeadTransform | None = None
    soft_cap: float | None = None

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
