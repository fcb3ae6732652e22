"""The RNN encoder-decoder with gated recurrent units (Cho et al. 2014, arXiv 1406.1078).

The encoder turns a source into one vector c. In lstm.py, such a vector is only the decoder's first state; here, c is an
input of every decoder step and of the output layer as well (sections 2.2 and A.1.2 of the paper).

One layer, for input x [R, in] and hidden h [R, U], with * elementwise:

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)         reset gate   (1406.1078, equation 5)
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)         update gate  (equation 6)
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))      candidate    (equation 8)
    h' = (1 - z) * n + z * h                           (equation 7)

This is torch's unit: its reset gate multiplies W_hn h + b_hn, whereas the paper has W_hn (r * h). As in the paper:
c = tanh(V h_S), h'_0 = tanh(V' c), c at every step, and a maxout output layer. Added: biases, several layers, dropout.

Parameters: `weight_ih_l{n}` [3U, in] and `weight_hh_l{n}` [3U, U] of layer n stack the rows of r, z, n in this order,
as do `bias_ih_l{n}` and `bias_hh_l{n}` [3U]. Layer n + 1 takes the h' of layer n as its x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import ReferenceConfig
from .interface import EncoderDecoder, between, initialize_recurrence, maxout, pack


class Memory(NamedTuple):
    """context [B, U] float32: the source as one vector c."""

    context: Tensor


class State(NamedTuple):
    """hidden [R, L, U] float32. context [R, U] float32, the same at every step."""

    hidden: Tensor
    context: Tensor


class GRUEncoderDecoder(EncoderDecoder):
    """encoder: nn.GRU E -> U. summary: U -> U. initial: U -> L U. decoder: nn.GRU E + U -> U. readout: U + E + U -> 2E.

    h_s = GRU(E x_s, h_{s-1})                                 s over the source
    c = tanh(V h_S)                                           `summary`; h_S of the last layer
    h'_0 = tanh(V' c)                                         `initial`; rows l U to (l + 1) U are layer l's
    h'_t = GRU'([E' y_{t-1}; c], h'_{t-1})
    o_t = maxout(W_r [h'_t; E' y_{t-1}; c] + b_r)             `readout`; h'_t of the last layer
    p(y_t | y_<t, x) = softmax(W_o o_t + b_o)                 `output`
    """

    memory_class = Memory

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__(config)
        E, U, layers = config.d_model, config.units, config.decoder_layers
        self.encoder = nn.GRU(
            E, U, config.encoder_layers, batch_first=True, dropout=between(config, config.encoder_layers)
        )
        self.summary = nn.Linear(U, U)
        self.initial = nn.Linear(U, layers * U)
        self.decoder = nn.GRU(E + U, U, layers, batch_first=True, dropout=between(config, layers))
        self.readout = nn.Linear(U + E + U, 2 * E)
        initialize_recurrence(self.encoder)
        initialize_recurrence(self.decoder)
        self.output = self.make_output(E)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Memory:
        lengths = self.check_source(input_ids, source_mask)
        embedded = self.dropout(self.source_embedding(input_ids))  # [B, S, E]
        _, hidden = self.encoder(pack(embedded, lengths))  # [L, B, U]
        return Memory(torch.tanh(self.summary(hidden[-1])))

    def start(self, memory: Memory) -> State:
        first = torch.tanh(self.initial(memory.context))  # [B, L U]
        return State(first.unflatten(-1, (self.config.decoder_layers, -1)), memory.context)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, None]:
        logits, state = self._decode(token[:, None], state)
        return logits[:, 0], state, None

    def forward(self, input_ids: Tensor, source_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        state = self.start(self.encode(input_ids, source_mask))
        return self._decode(decoder_input_ids, state)[0]

    def _decode(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens [R, T] -> logits [R, T, V] and the state after the last of them."""
        embedded = self.dropout(self.target_embedding(tokens))  # [R, T, E]
        context = state.context[:, None].expand(-1, tokens.shape[1], -1)  # [R, T, U]
        first = state.hidden.transpose(0, 1).contiguous()  # [L, R, U]
        features, hidden = self.decoder(torch.cat([embedded, context], dim=-1), first)  # [R, T, U], [L, R, U]
        readout = maxout(self.readout(torch.cat([features, embedded, context], dim=-1)))  # [R, T, E]
        return self.output(self.dropout(readout)), State(hidden.transpose(0, 1), state.context)
