"""What a `graphs.structure.Transformer` computes, in plain PyTorch: the reference for models of other toolkits.

It has the reference models' interface (`reference/interface.py`), so that `generate` of transformers drives it. Only
what toolkits' models have is here: no windows, soft caps or experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig

from ...reference.hf import GenerateWrapper
from ...runtime.sources import MASK
from ...runtime.sources.token_ids import INPUT_IDS
from ..graphs.structure import (
    Attention,
    Block,
    FeedForward,
    Linear,
    Norm,
    PositionTable,
    RelativePositions,
    RelativeVectors,
    Rotary,
    Stack,
    Transformer,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Memory(NamedTuple):
    """states [B,S,E], mask [B,S] bool."""

    states: Tensor
    mask: Tensor


class State(NamedTuple):
    """cross_keys, cross_values [R,L,G,S,D], mask [R,S] bool, self_keys, self_values [R,L,G,T,D] of T tokens so far."""

    cross_keys: Tensor
    cross_values: Tensor
    mask: Tensor
    self_keys: Tensor
    self_values: Tensor


class PlainTransformer(nn.Module):
    """make: gives the structure with tables of at least that many positions. special: ids of pad, bos and eos."""

    memory_class = Memory

    def __init__(self, make: Callable[[int], Transformer], special: Mapping[str, int | None]) -> None:
        super().__init__()
        self._make = make
        self.structure = make(0)
        assert isinstance(self.structure.encoder.embedding, Tensor)
        # generate() asks a parameter for the device; the other weights are the structure's.
        self.embedding = nn.Parameter(self.structure.encoder.embedding, requires_grad=False)
        self.config = SimpleNamespace(
            vocab_size=len(self.structure.head.weight),
            max_target_length=positions_of(self.structure.decoder),
            **{f"{name}_token_id": special.get(name) for name in ("pad", "bos", "eos")},
        )

    def stretch(self, positions: int) -> None:
        self.structure = self._make(positions)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Memory:
        mask = source_mask.bool()
        stack = self.structure.encoder
        x = embed(stack, input_ids, 0)
        hidden = torch.where(mask, 0.0, -torch.inf)[:, None, None]  # [B,1,1,S]
        steps = torch.arange(x.shape[1])
        distance = steps - steps[:, None]  # [S,S], key - query
        for block in stack.blocks:
            x = block_output(block, x, self.structure.norm_first, distance, stack.positions, hidden)
        return Memory(final(stack, x), mask)

    def start(self, memory: Memory) -> State:
        states = memory.states
        keys, values = [], []
        for block in self.structure.decoder.blocks:
            cross = block.cross_attention
            assert cross is not None
            keys.append(by_head(linear(states, cross.key), cross.key_heads))
            values.append(by_head(linear(states, cross.value), cross.key_heads))
        own = self.structure.decoder.blocks[0].self_attention
        empty = states.new_zeros((len(states), len(keys), own.key_heads, 0, own.head_size))
        return State(torch.stack(keys, 1), torch.stack(values, 1), memory.mask, empty, empty)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """token [R] -> logits [R,V], the next state, cross-attention weights [R,L,H,S] of the structure's heads."""
        model, stack = self.structure, self.structure.decoder
        n_past = state.self_keys.shape[3]
        x = embed(stack, token[:, None], n_past)  # [R,1,E]
        distance = (torch.arange(n_past + 1) - n_past)[None]  # [1,T]
        hidden = torch.where(state.mask, 0.0, -torch.inf)[:, None, None]
        norm_first = model.norm_first if model.decoder_norm_first is None else model.decoder_norm_first
        weights, keys, values = [], [], []
        for i, block in enumerate(stack.blocks):
            past = state.self_keys[:, i], state.self_values[:, i]
            cross = state.cross_keys[:, i], state.cross_values[:, i]
            seen: list[Tensor] = []
            updated: list[Tensor] = []
            x = block_output(block, x, norm_first, distance, stack.positions, None, past, cross, hidden, seen, updated)
            weights.append(seen[0][:, :, 0])
            keys.append(updated[0])
            values.append(updated[1])
        x = final(stack, x)[:, 0] * model.head_scale
        logits = linear(x, model.head)
        by_layer = torch.stack(weights, 1)
        if model.alignment_heads is not None:
            by_layer = torch.stack([by_layer[:, layer, head] for layer, head in model.alignment_heads], 1)[:, None]
        following = State(*state[:3], torch.stack(keys, 1), torch.stack(values, 1))
        return logits, following, by_layer


def linear(x: Tensor, layer: Linear) -> Tensor:
    return functional.linear(x, layer.weight, layer.bias)


def normed(x: Tensor, norm: Norm) -> Tensor:
    if norm.bias is None:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.epsilon) * norm.weight
    return functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.epsilon)


def embed(stack: Stack, ids: Tensor, position: int) -> Tensor:
    """ids [R,T], the first of which is at `position` -> [R,T,E]"""
    assert isinstance(stack.embedding, Tensor)
    x = functional.embedding(ids, stack.embedding) * stack.embedding_scale
    if isinstance(stack.positions, PositionTable):
        first = stack.positions.offset + position
        x = x + stack.positions.table[first : first + ids.shape[1]]
    return x if stack.embedding_norm is None else normed(x, stack.embedding_norm)


def final(stack: Stack, x: Tensor) -> Tensor:
    return x if stack.final_norm is None else normed(x, stack.final_norm)


def by_head(x: Tensor, n_heads: int) -> Tensor:
    """[R,T,H*D] -> [R,H,T,D]"""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def block_output(
    block: Block,
    x: Tensor,
    norm_first: bool,
    distance: Tensor,
    positions: Any,
    hidden: Tensor | None,
    past: tuple[Tensor, Tensor] | None = None,
    cross: tuple[Tensor, Tensor] | None = None,
    cross_hidden: Tensor | None = None,
    seen: list[Tensor] | None = None,
    updated: list[Tensor] | None = None,
) -> Tensor:
    """x [R,T,E]. distance [T,N], key - query. seen gets the weights of cross-attention, updated the keys and values."""

    def residual(x: Tensor, norm: Norm, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + sublayer(normed(x, norm)) if norm_first else normed(x + sublayer(x), norm)

    def own(h: Tensor) -> Tensor:
        attention = block.self_attention
        keys, values = (by_head(linear(h, part), attention.key_heads) for part in (attention.key, attention.value))
        if attention.rotary is not None:
            keys = turned(keys, attention.rotary, distance)
        if past is not None and updated is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
            updated.extend([keys, values])
        return attend(attention, h, keys, values, hidden, distance, positions)[0]

    def other(h: Tensor) -> Tensor:
        assert block.cross_attention is not None and cross is not None and seen is not None
        mixed, weights = attend(block.cross_attention, h, *cross, cross_hidden)
        seen.append(weights)
        return mixed

    assert block.self_norm is not None
    x = residual(x, block.self_norm, own)
    if block.cross_norm is not None:
        x = residual(x, block.cross_norm, other)
    return residual(x, block.feed_forward_norm, lambda h: feed_forward(h, block.feed_forward))


def attend(
    attention: Attention,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    hidden: Tensor | None,
    distance: Tensor | None = None,
    positions: Any = None,
) -> tuple[Tensor, Tensor]:
    """x [R,T,E], keys and values [R,G,N,D], hidden additive [R,1,1,N] -> rows [R,T,E] and weights [R,H,T,N]."""
    query = by_head(linear(x, attention.query), attention.n_heads) * attention.scale
    if attention.rotary is not None and distance is not None:
        query = turned(query, attention.rotary, distance)
    repeats = attention.n_heads // keys.shape[1]
    keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    scores = query @ keys.transpose(2, 3)
    for bias in (positions, attention.relative):
        if isinstance(bias, RelativePositions) and distance is not None:
            last = bias.first + bias.by_distance.shape[1] - 1
            scores = scores + bias.by_distance[:, distance.clamp(bias.first, last) - bias.first]
    vectors = None if distance is None else attention.relative_vectors
    if vectors is not None:
        scores = scores + torch.einsum("rhtd,tnd->rhtn", query, _by_pair(vectors, vectors.keys, distance))
    if hidden is not None:
        scores = scores + hidden
    weights = scores.softmax(-1)
    mixed = weights @ values
    if vectors is not None:
        mixed = mixed + torch.einsum("rhtn,tnd->rhtd", weights, _by_pair(vectors, vectors.values, distance))
    return linear(mixed.transpose(1, 2).flatten(2), attention.output), weights


def turned(x: Tensor, rotary: Rotary, distance: Tensor) -> Tensor:
    """x [R,H,T,D], of the last T of the N tokens that distance [T,N] knows."""
    last = torch.arange(distance.shape[1])[-x.shape[2] :]
    cosine, sine = rotary.cosine[last], rotary.sine[last]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _by_pair(vectors: RelativeVectors, table: Tensor, distance: Any) -> Tensor:
    """The vector of each query and key, [T,N,D]."""
    return table[distance.clamp(-vectors.farthest, vectors.farthest) + vectors.farthest]


def feed_forward(x: Tensor, layer: Any) -> Tensor:
    assert isinstance(layer, FeedForward)
    act = ACTIVATIONS[layer.activation]
    inner = linear(x, layer.inner)
    return linear(act(inner) if layer.gate is None else act(linear(x, layer.gate)) * inner, layer.outer)


def positions_of(stack: Stack) -> int | None:
    """How many positions a table has room for; None where positions are relative."""
    positions, rotary = stack.positions, stack.blocks[0].self_attention.rotary
    if isinstance(positions, PositionTable):
        return len(positions.table) - positions.offset
    return None if rotary is None else len(rotary.cosine)


class ToolkitModel(GenerateWrapper):
    """`generate` over a toolkit's model. defaults: of generation; notices: what is worth saying about the reading."""

    def __init__(self, model: Any, defaults: Mapping[str, Any], notices: list[str] | None = None) -> None:
        super().__init__(model)
        self.generation_config = GenerationConfig(**defaults)
        self.config.decoder_start_token_id = defaults.get("decoder_start_token_id")
        self.notices = notices or []


def plain_of(wrapper: ToolkitModel) -> PlainTransformer:
    assert isinstance(wrapper.model, PlainTransformer)
    return wrapper.model


class Reference:
    """A PlainTransformer seen as the three graphs (`parity.Reference`)."""

    def __init__(self, wrapper: ToolkitModel) -> None:
        self.model = plain_of(wrapper)

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"encoder_states": self.model.encode(inputs[INPUT_IDS], inputs[MASK]).states}

    @torch.no_grad()
    def cross(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = self.model.start(self.model.encode(inputs[INPUT_IDS], inputs[MASK]))
        found = {}
        for i in range(state.cross_keys.shape[1]):
            found[f"cross_key.{i}"], found[f"cross_value.{i}"] = state.cross_keys[:, i], state.cross_values[:, i]
        return found

    @torch.no_grad()
    def step(self, inputs: Mapping[str, Tensor], history: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask = inputs[INPUT_IDS], inputs[MASK]
        repeats = history.shape[0] // ids.shape[0]
        state = self.model.start(
            self.model.encode(ids.repeat_interleave(repeats, 0), mask.repeat_interleave(repeats, 0))
        )
        for token in history.T:
            logits, state, weights = self.model.step(token, state)
        return logits, weights
