"""Jointly learning to align and translate (Bahdanau, Cho, Bengio 2014, arXiv 1409.0473).

A bidirectional encoder computes one annotation for each source token. Before each target token, the decoder's state
scores all annotations, and their weighted sum, the context, is an input of that step. So no vector of fixed size has to
hold the whole source.

The decoder's units are those of gru.py or lstm.py (`cell`). Three scores of state s against annotation h_j (`score`):

    additive   v . tanh(W_a s + U_a h_j + b_a)      1409.0473, section A.1.2
    dot        s . h_j                              Luong et al. 2015, arXiv 1508.04025, equation 8
    general    s . W_a h_j                          same

Only the score differs: with each, as in 1409.0473, the state before the step is compared with the annotations, and the
context is the step's input. Differences from the paper: each direction has U/2 units, so that an annotation has the U
that `dot` needs; the output layer reads s_t as in section 3.1, whereas the appendix has s_{t-1}; torch's reset gate
multiplies W h, whereas the paper has W (r * h).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .config import ReferenceConfig
from .interface import EncoderDecoder, between, initialize_recurrence, maxout, pack


class Memory(NamedTuple):
    """annotations [B, S, U] float32: h_j, zero at padding. summary [B, U/2] float32: the last layer's backward
    direction at the first token. source_mask [B, S] bool.
    """

    annotations: Tensor
    summary: Tensor
    source_mask: Tensor


class State(NamedTuple):
    """hidden [R, L, U] float32. cell [R, L, U] float32 of LSTM cells, None of GRU cells. The same at every step:
    annotations [R, S, U], keys [R, S, U] float32 (what the score computes from h_j alone), source_mask [R, S] bool.
    """

    hidden: Tensor
    cell: Tensor | None
    annotations: Tensor
    keys: Tensor
    source_mask: Tensor


class AttentionEncoderDecoder(EncoderDecoder):
    """encoder: bidirectional nn.GRU or nn.LSTM E -> U/2 each. decoder: one nn.GRUCell or nn.LSTMCell for each layer.

        h_j = [forward_j; backward_j]                                 annotation
        s_0 = tanh(W_s backward_1 + b_s)                              `initial`; rows l U to (l + 1) U are layer l's
        k_j = U_a h_j + b_a | h_j | W_a h_j                           `key` (none for dot, no bias for general)
        e_tj = v . tanh(W_a s_{t-1} + k_j) | s_{t-1} . k_j            `query`, `energy` (additive only, without bias)
        a_tj = softmax over the source's tokens of e_tj               equation 6
        c_t = sum_j a_tj h_j                                          equation 5
        s_t = cell([E' y_{t-1}; c_t], s_{t-1})                        layer n + 1 takes layer n's s_t as input
        o_t = maxout(W_r [s_t; E' y_{t-1}; c_t] + b_r)                `readout`
        p(y_t | y_<t, x) = softmax(W_o o_t + b_o)                     `output`

    s_{t-1} in e_tj and s_t in o_t are the last layer's. An LSTM cell's memory starts at zero.
    """

    memory_class = Memory

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__(config)
        E, U, layers = config.d_model, config.units, config.decoder_layers
        recurrence: Any = nn.LSTM if config.cell == "lstm" else nn.GRU
        cell: Any = nn.LSTMCell if config.cell == "lstm" else nn.GRUCell
        self.encoder = recurrence(
            E,
            U // 2,
            config.encoder_layers,
            batch_first=True,
            bidirectional=True,
            dropout=between(config, config.encoder_layers),
        )
        self.initial = nn.Linear(U // 2, layers * U)
        if config.score == "additive":
            self.query = nn.Linear(U, U, bias=False)
            self.energy = nn.Linear(U, 1, bias=False)
        if config.score != "dot":
            self.key = nn.Linear(U, U, bias=config.score == "additive")
        self.decoder = nn.ModuleList(cell(E + U if layer == 0 else U, U) for layer in range(layers))
        self.readout = nn.Linear(U + E + U, 2 * E)
        for recurrent in (self.encoder, *self.decoder):
            initialize_recurrence(recurrent)
        self.output = self.make_output(E)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Memory:
        lengths = self.check_source(input_ids, source_mask)
        embedded = self.dropout(self.source_embedding(input_ids))  # [B, S, E]
        packed, _ = self.encoder(pack(embedded, lengths))
        annotations, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=input_ids.shape[1])
        return Memory(annotations, annotations[:, 0, self.config.units // 2 :], source_mask.bool())

    def start(self, memory: Memory) -> State:
        hidden = torch.tanh(self.initial(memory.summary)).unflatten(-1, (self.config.decoder_layers, -1))  # [B, L, U]
        cell = torch.zeros_like(hidden) if self.config.cell == "lstm" else None
        keys = memory.annotations if self.config.score == "dot" else self.key(memory.annotations)  # [B, S, U]
        return State(hidden, cell, memory.annotations, keys, memory.source_mask)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        embedded = self.dropout(self.target_embedding(token))  # [R, E]
        context, state, weights = self._advance(embedded, state)
        return self._logits(state.hidden[:, -1], embedded, context), state, weights[:, None, None]

    def forward(self, input_ids: Tensor, source_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        state = self.start(self.encode(input_ids, source_mask))
        embedded = self.dropout(self.target_embedding(decoder_input_ids))  # [B, T, E]
        features, contexts = [], []
        for position in range(decoder_input_ids.shape[1]):
            context, state, _ = self._advance(embedded[:, position], state)
            features.append(state.hidden[:, -1])
            contexts.append(context)
        return self._logits(torch.stack(features, dim=1), embedded, torch.stack(contexts, dim=1))

    def _advance(self, embedded: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """embedded [R, E] -> context [R, U], the state after it, weights [R, S]."""
        weights = self._align(state.hidden[:, -1], state)
        context = torch.bmm(weights[:, None], state.annotations)[:, 0]
        value, hidden, cell = torch.cat([embedded, context], dim=-1), [], []
        for layer, unit in enumerate(self.decoder):
            if layer > 0:
                value = self.dropout(value)
            if state.cell is None:
                value = unit(value, state.hidden[:, layer])
            else:
                value, inner = unit(value, (state.hidden[:, layer], state.cell[:, layer]))
                cell.append(inner)
            hidden.append(value)
        advanced = state._replace(hidden=torch.stack(hidden, dim=1), cell=torch.stack(cell, dim=1) if cell else None)
        return context, advanced, weights

    def _align(self, asking: Tensor, state: State) -> Tensor:
        """asking [R, U], the last layer's s_{t-1} -> weights [R, S], zero at padding."""
        if self.config.score == "additive":
            scores = self.energy(torch.tanh(self.query(asking)[:, None] + state.keys))[:, :, 0]
        else:
            scores = torch.bmm(state.keys, asking[:, :, None])[:, :, 0]
        return torch.softmax(scores.masked_fill(~state.source_mask, float("-inf")), dim=-1)

    def _logits(self, features: Tensor, embedded: Tensor, context: Tensor) -> Tensor:
        """features [..., U], embedded [..., E], context [..., U] -> [..., V]."""
        return self.output(self.dropout(maxout(self.readout(torch.cat([features, embedded, context], dim=-1)))))
