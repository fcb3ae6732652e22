"""OpenNMT-py's recurrent models: an LSTM or GRU encoder, and a decoder with global attention (1508.04025).

With `input_feed` the attentional vector of a step is part of the next one's input (section 3.3 of the paper). The
decoder starts from the encoder's last states, those of both directions side by side, through a bridge if there is one.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ...errors import CheckpointError
from .options import Options
from .weights import Weights

N_STATES = {"LSTM": 2, "GRU": 1}
SCORES = {"general": "general", "dot": "dot", "mlp": "mlp", "none": "none"}


class Memory(NamedTuple):
    """states [B,S,U] of the last layer, last [B,n*L,U] of all layers (hidden, then cell), mask [B,S]."""

    states: Tensor
    last: Tensor
    mask: Tensor


class State(NamedTuple):
    """states [R,S,U], mask [R,S], last [R,n*L,U], feed [R,U] the attentional vector."""

    states: Tensor
    mask: Tensor
    last: Tensor
    feed: Tensor


class OpenNMTRecurrent(nn.Module):
    memory_class = Memory

    def __init__(
        self,
        kind: str,
        sizes: tuple[int, int],
        widths: tuple[int, int],
        units: int,
        n_layers: tuple[int, int],
        *,
        is_bidirectional: bool,
        has_bridge: bool,
        score: str,
        feeds: bool,
    ) -> None:
        """sizes, widths, n_layers: vocabularies, embeddings and layers of the encoder and decoder. units: U."""
        super().__init__()
        self.kind, self.units, self.n_layers = kind, units, n_layers[1]
        self.score, self.feeds, self.is_bidirectional = score, feeds, is_bidirectional
        directions = 2 if is_bidirectional else 1
        self.source_embedding = nn.Embedding(sizes[0], widths[0])
        self.target_embedding = nn.Embedding(sizes[1], widths[1])
        layers = {"LSTM": nn.LSTM, "GRU": nn.GRU}[kind]
        self.encoder = layers(
            widths[0], units // directions, n_layers[0], bidirectional=is_bidirectional, batch_first=True
        )
        width = units // directions * n_layers[0]
        self.bridge_width = width
        self.bridge = nn.ModuleList(nn.Linear(width, width) for _ in range(N_STATES[kind] if has_bridge else 0))
        cell = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}[kind]
        first = widths[1] + (units if feeds else 0)
        self.decoder = nn.ModuleList(cell(units if i else first, units) for i in range(n_layers[1]))
        if score == "general":
            self.linear_in = nn.Linear(units, units, bias=False)
        if score == "mlp":
            self.linear_context = nn.Linear(units, units, bias=False)
            self.linear_query = nn.Linear(units, units)
            self.v = nn.Linear(units, 1, bias=False)
        if score != "none":
            self.linear_out = nn.Linear(2 * units, units, bias=score == "mlp")
        self.generator = nn.Linear(units, sizes[1])
        self.config: Any = SimpleNamespace()

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Memory:
        lengths = source_mask.sum(1)
        packed = pack_padded_sequence(self.source_embedding(input_ids), lengths, batch_first=True, enforce_sorted=False)
        outputs, last = self.encoder(packed)
        states, _ = pad_packed_sequence(outputs, batch_first=True, total_length=input_ids.shape[1])
        found = last if isinstance(last, tuple) else (last,)
        return Memory(states, torch.cat([self._first(i, value) for i, value in enumerate(found)], 1), source_mask)

    def _first(self, number: int, last: Tensor) -> Tensor:
        """The encoder's last states [L*d,B,U/d] as the decoder's first [B,L,U]."""
        if len(self.bridge):
            # The linear layer is for one direction's states; with two, their rows are cut alike (`bottle_hidden`).
            bottled = last.transpose(0, 1)
            flat = bottled.reshape(-1, self.bridge_width)
            last = torch.relu(self.bridge[number](flat)).reshape(bottled.shape).transpose(0, 1)
        if self.is_bidirectional:
            last = torch.cat([last[0::2], last[1::2]], 2)
        return last.transpose(0, 1)

    def start(self, memory: Memory) -> State:
        return State(memory.states, memory.mask, memory.last, torch.zeros_like(memory.last[:, 0]))

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        x = self.target_embedding(token)
        if self.feeds:
            x = torch.cat([x, state.feed], 1)
        hidden, cells = [], []
        for i, cell in enumerate(self.decoder):
            if self.kind == "LSTM":
                h, c = cell(x, (state.last[:, i], state.last[:, self.n_layers + i]))
                cells.append(c)
            else:
                h = cell(x, state.last[:, i])
            hidden.append(h)
            x = h
        weights = None
        if self.score != "none":
            weights = (self._scores(x, state.states) + torch.where(state.mask.bool(), 0.0, -1e9)).softmax(-1)  # [R,S]
            context = (weights[:, None] @ state.states)[:, 0]
            x = self.linear_out(torch.cat([context, x], 1))
            if self.score != "mlp":
                x = torch.tanh(x)
        after = State(state.states, state.mask, torch.stack([*hidden, *cells], 1), x)
        return self.generator(x), after, None if weights is None else weights[:, None, None]

    def _scores(self, query: Tensor, states: Tensor) -> Tensor:
        if self.score == "mlp":
            both = torch.tanh(self.linear_query(query)[:, None] + self.linear_context(states))
            return self.v(both)[..., 0]
        asking = self.linear_in(query) if self.score == "general" else query
        return (states @ asking[..., None])[..., 0]


def build(
    file: Path, options: Options, weights: Weights, sizes: tuple[int, int], special: dict[str, Any]
) -> OpenNMTRecurrent:
    """Raises CheckpointError, UnsupportedModel."""
    for name, *known in (
        ("context_gate", None), ("coverage_attn", False), ("global_attention_function", "softmax"),
    ):  # fmt: skip
        options.expect(name, *known)
    kind = options.one_of("rnn_type", "LSTM", {"LSTM": "LSTM", "GRU": "GRU"})
    common = options.number("layers", -1)
    n_layers = tuple(common if common > 0 else options.number(f"{side}_layers", 2) for side in ("enc", "dec"))
    is_bidirectional = options.get("encoder_type") == "brnn" or bool(options.get("brnn", False))
    source, target = (
        weights.take(f"{side}.embeddings.make_embedding.emb_luts.0.weight", size, None)
        for side, size in (("encoder", sizes[0]), ("decoder", sizes[1]))
    )
    units = weights.take("generator.weight", sizes[1], None).shape[1]
    if not all(0 < n <= 100 for n in n_layers) or n_layers[0] != n_layers[1] or units % 2:
        raise CheckpointError(f"{file}: has {n_layers} layers of {units} units; expected as many on both sides")
    model = OpenNMTRecurrent(
        kind,
        sizes,
        (source.shape[1], target.shape[1]),
        units,
        (n_layers[0], n_layers[1]),
        is_bidirectional=is_bidirectional,
        has_bridge=bool(options.get("bridge", False)),
        score=options.one_of("global_attention", "general", SCORES),
        feeds=bool(options.get("input_feed", 1)),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.take(_theirs(name, model.feeds), *parameter.shape))
    weights.refuse_unread()
    model.config = SimpleNamespace(
        vocab_size=sizes[1],
        source_vocabulary_size=sizes[0],
        max_target_length=None,
        **{f"{name}_token_id": value for name, value in special.items()},
    )
    return model.eval()


def _theirs(name: str, feeds: bool) -> str:
    """OpenNMT-py's name of a parameter."""
    part, rest = name.split(".", 1)
    if part.endswith("_embedding"):
        side = "encoder" if part == "source_embedding" else "decoder"
        return f"{side}.embeddings.make_embedding.emb_luts.0.{rest}"
    if part == "encoder":
        return f"encoder.rnn.{rest}"
    if part == "decoder":
        number, weight = rest.split(".")
        return f"decoder.rnn.layers.{number}.{weight}" if feeds else f"decoder.rnn.{weight}_l{number}"
    if part == "bridge":
        return f"encoder.bridge.{rest}"
    return name if part == "generator" else f"decoder.attn.{name}"
