"""The Transformer (Vaswani et al. 2017, arXiv 1706.03762).

No recurrence: source positions attend to the whole source, target positions to themselves and to earlier ones, and to
the source. A step feeds one token, and attends to the keys and values that earlier steps computed.

    Attention(Q, K, V) = softmax(Q K' / sqrt(D)) V                     equation 1, per head; E = H D
    FFN(x) = W_2 max(0, W_1 x + b_1) + b_2                             equation 2, `ff_in` and `ff_out`
    PE(pos, 2i) = sin(pos / 10000^(2i/E)), PE(pos, 2i+1) = cos(...)    section 3.5, `positions` = sinusoidal
    x_0 = sqrt(E) * embedding + position                               section 3.4

`norm` says where layer normalization goes around each sublayer F (self-attention, cross-attention, FFN):

    post   x = LayerNorm(x + F(x))                       as in the paper
    pre    x = x + F(LayerNorm(x)), one more at the end  Xiong et al. 2020, arXiv 2002.04745: trains without warm-up
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from .config import ReferenceConfig
from .interface import EncoderDecoder


class Memory(NamedTuple):
    """states [B, S, E] float32. source_mask [B, S] bool."""

    states: Tensor
    source_mask: Tensor


class State(NamedTuple):
    """self_keys, self_values [R, L, H, T, D] float32: of the T tokens so far, one more after each step.
    The same at every step: cross_keys, cross_values [R, L, H, S, D] float32, source_mask [R, S] bool.
    """

    self_keys: Tensor
    self_values: Tensor
    cross_keys: Tensor
    cross_values: Tensor
    source_mask: Tensor


class Attention(nn.Module):
    """Multi-head attention (section 3.2.2): `query`, `key`, `value`, `output`, each E -> E with bias."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value, self.output = (nn.Linear(config.d_model, config.d_model) for _ in range(4))
        self.dropout = nn.Dropout(config.dropout)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states [R, S, E] -> keys and values [R, H, S, D]."""
        return self._split(self.key(states)), self._split(self.value(states))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """x [R, T, E], keys and values [R, H, S, D], visible bool, broadcast to [R, H, T, S].

        Returns [R, T, E] and the weights [R, H, T, S].
        """
        query = self._split(self.query(x))
        scores = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
        weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
        mixed = (self.dropout(weights) @ values).transpose(1, 2).flatten(2)  # [R, T, H, D] -> [R, T, E]
        return self.output(mixed), weights

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [R, T, E] -> [R, H, T, D]


class Layer(nn.Module):
    """One layer of the encoder or the decoder. `self_norm`, `cross_norm`, `ff_norm` belong to the three sublayers."""

    def __init__(self, config: ReferenceConfig, cross: bool) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.self_attention, self.self_norm = Attention(config), nn.LayerNorm(config.d_model)
        if cross:
            self.cross_attention, self.cross_norm = Attention(config), nn.LayerNorm(config.d_model)
        ff_size = config.ff_size or 4 * config.d_model
        self.ff_in, self.ff_out = nn.Linear(config.d_model, ff_size), nn.Linear(ff_size, config.d_model)
        self.ff_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def before(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return norm(x) if self.pre else x

    def after(self, x: Tensor, change: Tensor, norm: nn.LayerNorm) -> Tensor:
        x = x + self.dropout(change)
        return x if self.pre else norm(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.ff_in(self.before(x, self.ff_norm)))
        return self.after(x, self.ff_out(self.dropout(hidden)), self.ff_norm)


def _layers(modules: nn.ModuleList) -> Iterator[Layer]:
    return cast("Iterator[Layer]", iter(modules))


class TransformerEncoderDecoder(EncoderDecoder):
    """encoder, decoder: lists of `Layer`. encoder_norm, decoder_norm: only if norm is "pre". output: E -> V.

    source_positions, target_positions: nn.Embedding [max length, E] when learned, a computed table when sinusoidal.
    """

    memory_class = Memory
    sinusoids: Tensor  # a buffer; only where `positions` is sinusoidal

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__(config)
        self.encoder = nn.ModuleList(Layer(config, cross=False) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(Layer(config, cross=True) for _ in range(config.decoder_layers))
        if config.norm == "pre":
            self.encoder_norm, self.decoder_norm = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        if config.positions == "learned":
            self.source_positions = nn.Embedding(config.max_source_length, config.d_model)
            self.target_positions = nn.Embedding(config.max_target_length, config.d_model)
        else:
            longest = max(config.max_source_length, config.max_target_length)
            self.register_buffer("sinusoids", sinusoids(longest, config.d_model), persistent=False)
        self.output = self.make_output(config.d_model)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Memory:
        self.check_source(input_ids, source_mask)
        x = self._embed(input_ids, "source")
        visible = source_mask.bool()[:, None, None]  # [B, 1, 1, S]
        for layer in _layers(self.encoder):
            asked = layer.before(x, layer.self_norm)
            change, _ = layer.self_attention(asked, *layer.self_attention.keys_values(asked), visible)
            x = layer.feed_forward(layer.after(x, change, layer.self_norm))
        return Memory(self.encoder_norm(x) if self.config.norm == "pre" else x, source_mask.bool())

    def start(self, memory: Memory) -> State:
        pairs = [layer.cross_attention.keys_values(memory.states) for layer in _layers(self.decoder)]
        cross_keys, cross_values = (torch.stack(side, dim=1) for side in zip(*pairs, strict=True))
        nothing = cross_keys[:, :, :, :0]
        return State(nothing, nothing, cross_keys, cross_values, memory.source_mask)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        logits, state, weights = self._decode(token[:, None], state)
        return logits[:, 0], state, weights[:, :, :, 0]

    def forward(self, input_ids: Tensor, source_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        state = self.start(self.encode(input_ids, source_mask))
        return self._decode(decoder_input_ids, state)[0]

    def _decode(self, tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """tokens [R, T] after the P tokens of `state` -> logits [R, T, V], the state, weights [R, L, H, T, S]."""
        past, length = state.self_keys.shape[3], tokens.shape[1]
        x = self._embed(tokens, "target", past)
        causal = torch.ones(length, past + length, dtype=torch.bool, device=x.device).tril(past)  # [T, P + T]
        visible = state.source_mask[:, None, None]  # [R, 1, 1, S]
        keys, values, weights = [], [], []
        for number, layer in enumerate(_layers(self.decoder)):
            asked = layer.before(x, layer.self_norm)
            new_keys, new_values = layer.self_attention.keys_values(asked)
            keys.append(torch.cat([state.self_keys[:, number], new_keys], dim=2))
            values.append(torch.cat([state.self_values[:, number], new_values], dim=2))
            change, _ = layer.self_attention(asked, keys[-1], values[-1], causal)
            x = layer.after(x, change, layer.self_norm)
            asked = layer.before(x, layer.cross_norm)
            change, weight = layer.cross_attention(
                asked, state.cross_keys[:, number], state.cross_values[:, number], visible
            )
            weights.append(weight)
            x = layer.feed_forward(layer.after(x, change, layer.cross_norm))
        if self.config.norm == "pre":
            x = self.decoder_norm(x)
        state = state._replace(self_keys=torch.stack(keys, dim=1), self_values=torch.stack(values, dim=1))
        return self.output(x), state, torch.stack(weights, dim=1)

    def _embed(self, tokens: Tensor, side: str, past: int = 0) -> Tensor:
        """tokens [R, T] of one side, at positions past, past + 1, ... -> [R, T, E]."""
        end = past + tokens.shape[1]
        if side == "target" and end > self.config.max_target_length:
            raise InputError(
                f"the target has {end} tokens, expected at most {self.config.max_target_length}; "
                "stop earlier, or train with a larger max_target_length"
            )
        embedding = self.source_embedding if side == "source" else self.target_embedding
        if self.config.positions == "learned":
            positions = (self.source_positions if side == "source" else self.target_positions).weight[past:end]
        else:
            positions = self.sinusoids[past:end]
        return self.dropout(math.sqrt(self.config.d_model) * embedding(tokens) + positions)


def sinusoids(length: int, width: int) -> Tensor:
    """PE [length, E] float32, sine at even features and cosine at odd ones (1706.03762, section 3.5)."""
    even = torch.arange(0, width, 2, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** (even / width)  # [length, E/2]
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()
