"""Modules as their owners write them, with `encode`, `start` and `step`; tiny and random."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from s2s_export import cached_attention

VOCABULARY = 31
START, END, PAD = 1, 2, 0


class Memory(NamedTuple):
    states: Tensor
    hidden: Tensor
    mask: Tensor


class State(NamedTuple):
    hidden: Tensor
    states: Tensor
    mask: Tensor
    unused: Tensor | None


class Attentive(nn.Module):
    """A packed bidirectional encoder of two layers, a GRU cell with attention. kind: GRU, LSTM or RNN."""

    memory_class = Memory
    config = SimpleNamespace(
        pad_token_id=PAD, bos_token_id=START, eos_token_id=END, vocab_size=VOCABULARY, max_target_length=20
    )

    def __init__(self, kind: str = "GRU", **options: Any) -> None:
        super().__init__()
        self.kind = kind
        self.source, self.target = nn.Embedding(VOCABULARY, 8), nn.Embedding(VOCABULARY, 8)
        self.encoder = getattr(nn, kind)(8, 6, num_layers=2, bidirectional=True, batch_first=True, **options)
        self.query, self.cell, self.output = nn.Linear(6, 12), nn.GRUCell(20, 6), nn.Linear(6, VOCABULARY)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Memory:
        lengths = source_mask.sum(1).cpu()
        packed = pack_padded_sequence(self.source(input_ids), lengths, batch_first=True, enforce_sorted=False)
        states, last = self.encoder(packed)
        hidden = last[0] if self.kind == "LSTM" else last
        return Memory(pad_packed_sequence(states, batch_first=True)[0], hidden[-1], source_mask.bool())

    def start(self, memory: Memory) -> State:
        return State(memory.hidden, memory.states, memory.mask, None)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        scores = torch.einsum("ru,rsu->rs", self.query(state.hidden), state.states)
        weights = scores.masked_fill(~state.mask, -1e9).softmax(-1)
        context = torch.einsum("rs,rsu->ru", weights, state.states)
        hidden = self.cell(torch.cat([self.target(token), context], dim=-1), state.hidden)
        return self.output(hidden), state._replace(hidden=hidden), weights[:, None, None]


class Growing(NamedTuple):
    states: Tensor
    mask: Tensor
    cache: Tensor
    position: Tensor


class Convolved(NamedTuple):
    states: Tensor
    mask: Tensor


class Cached(nn.Module):
    """A convolution as the encoder, and a decoder with attention over a cache that grows along time."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, 8), nn.Embedding(VOCABULARY, 8)
        self.positions, self.convolution = nn.Embedding(40, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.own, self.cross = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.output = nn.Linear(8, VOCABULARY)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Convolved:
        x = self.source(input_ids) * source_mask[..., None]
        return Convolved(torch.relu(self.convolution(x.transpose(1, 2))).transpose(1, 2), source_mask)

    def start(self, memory: Convolved) -> Growing:
        rows = memory.states.shape[0]
        return Growing(*memory, memory.states.new_zeros(rows, 0, 8), torch.zeros(rows, dtype=torch.int64))

    def step(self, token: Tensor, state: Growing) -> tuple[Tensor, Growing, Tensor]:
        x = (self.target(token) + self.positions(state.position))[:, None]
        cache = torch.cat([state.cache, x], dim=1)
        x = x + self.own(x, cache, cache, need_weights=False)[0]
        mixed, weights = self.cross(
            x, state.states, state.states, key_padding_mask=state.mask == 0, average_attn_weights=False
        )
        after = state._replace(cache=cache, position=state.position + 1)
        return self.output((x + mixed)[:, 0]), after, weights[:, None, :, 0]


def spread(model: nn.Module, seed: int = 1) -> Any:
    """The model with larger random weights, so that its outputs vary."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.8 if parameter.dim() > 1 else 0.3))
    return model


class Cache(NamedTuple):
    states: Tensor
    mask: Tensor
    keys: Tensor
    values: Tensor
    position: Tensor


class KeysAndValues(nn.Module):
    """A decoder of two layers whose keys and values grow along time. form: how its attention is written."""

    def __init__(self, form: str = "function") -> None:
        super().__init__()
        self.form, self.n_heads, self.key_heads = form, 2, 1 if form == "shared heads" else 2
        self.source, self.target = nn.Embedding(VOCABULARY, 8), nn.Embedding(VOCABULARY, 8)
        self.positions, self.distances = nn.Embedding(40, 8), nn.Parameter(torch.zeros(2, 40))
        width = 4 * self.key_heads
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, width), nn.Linear(8, width), nn.Linear(8, 8)])
            for _ in range(2)
        )
        self.output = nn.Linear(8, VOCABULARY)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Convolved:
        return Convolved(self.source(input_ids), source_mask.bool())

    def start(self, memory: Convolved) -> Cache:
        shape = (memory.states.shape[0], 2, self.key_heads)
        empty = memory.states.new_zeros(*shape, *((4, 0) if self.form == "keys last" else (0, 4)))
        position = torch.zeros_like(memory.mask[:, 0], dtype=torch.int64)
        return Cache(*memory, empty, memory.states.new_zeros(*shape, 0, 4), position)

    def step(self, token: Tensor, state: Cache) -> tuple[Tensor, Cache, None]:
        places = state.values.shape[3] if self.form == "length" else None
        x = self.target(token) + (self.positions(state.position) if places is None else self.positions.weight[places])
        grown = []
        for i, (query, key, value, output) in enumerate(self.layers):
            parts = [
                layer(x).unflatten(-1, (n, 4))
                for layer, n in ((query, self.n_heads), (key, self.key_heads), (value, self.key_heads))
            ]
            mixed, *caches = self.attend(*parts, state.keys[:, i], state.values[:, i])
            grown.append((*caches, *parts[1:]))
            x = torch.tanh(x + output(mixed.flatten(1)))
        weights = torch.einsum("re,rse->rs", x, state.states).masked_fill(~state.mask, -1e9).softmax(-1)
        keys, values, new_keys, new_values = (torch.stack(each, dim=1) for each in zip(*grown, strict=True))
        if self.form == "stacked":  # what is returned is concatenated anew
            keys = torch.cat([state.keys, new_keys[:, :, :, None]], dim=3)
            values = torch.cat([state.values, new_values[:, :, :, None]], dim=3)
        x = x + torch.einsum("rs,rse->re", weights, state.states)
        return self.output(x), state._replace(keys=keys, values=values, position=state.position + 1), None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """query, key, value [R,H,D], keys, values [R,H,T,D] -> mixed [R,H,D] and the caches."""
        if self.form == "bias":
            n = keys.shape[2]
            return cached_attention(query, key, value, keys, values, bias=self.distances[:, n - torch.arange(n + 1)])
        if self.form in ("function", "shared heads", "length"):
            return cached_attention(query, key, value, keys, values)
        if self.form == "keys last":  # as [R,H,D,T]
            keys, values = torch.cat([keys, key[..., None]], 3), torch.cat([values, value[:, :, None]], 2)
            weights = (query[:, :, None] @ keys * 0.5).softmax(-1)
            return (weights @ values).squeeze(2), keys, values
        keys, values = (torch.cat([old, new[:, :, None]], 2) for old, new in ((keys, key), (values, value)))
        if self.form == "einsum":
            weights = torch.einsum("rhd,rhtd->rht", query / 2, keys).softmax(-1)
            return torch.einsum("rht,rhtd->rhd", weights, values), keys, values
        if self.form == "product":
            scores = query[:, :, None] @ keys.transpose(-1, -2) / 2
            return (torch.dropout(scores.softmax(-1), 0.1, self.training) @ values)[:, :, 0], keys, values
        if self.form == "bmm":
            flat = [each.flatten(0, 1) for each in (query[:, :, None], keys, values)]
            weights = (torch.bmm(flat[0], flat[1].transpose(1, 2)) * 0.5).softmax(-1)
            return torch.bmm(weights, flat[2]).unflatten(0, (-1, self.n_heads))[:, :, 0], keys, values
        mixed = nn.functional.scaled_dot_product_attention(query[:, :, None], keys, values)
        return mixed[:, :, 0], keys, values
