"""Sequence to sequence learning with LSTMs (Sutskever, Vinyals, Le 2014, arXiv 1409.3215).

A deep LSTM reads the source, in reverse order with `reverse_source` (section 3.3 of the paper). Its last states are all
that the decoder, another deep LSTM, learns about the source: a context of fixed size.

One layer, for input x [R, E or U], hidden h and cell c [R, U], with * elementwise (Graves 2013, arXiv 1308.0850,
equations 7 to 11, without its peepholes):

    i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      input gate
    f = sigmoid(W_if x + b_if + W_hf h + b_hf)      forget gate
    g = tanh   (W_ig x + b_ig + W_hg h + b_hg)      candidate
    o = sigmoid(W_io x + b_io + W_ho h + b_ho)      output gate
    c' = f * c + i * g
    h' = o * tanh(c')

Parameters: `weight_ih_l{n}` [4U, E or U] and `weight_hh_l{n}` [4U, U] of layer n stack the rows of i, f, g, o in this
order, as do `bias_ih_l{n}` and `bias_hh_l{n}` [4U]. Layer n + 1 takes the h' of layer n as its x.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .config import ReferenceConfig
from .interface import EncoderDecoder, between, initialize_recurrence, pack, reverse_sources


class State(NamedTuple):
    """Also the memory: the encoder's last states are the decoder's first ones.

    hidden [R, L, U] float32. cell [R, L, U] float32.
    """

    hidden: Tensor
    cell: Tensor


class LSTMEncoderDecoder(EncoderDecoder):
    """encoder: nn.LSTM E -> U. decoder: nn.LSTM E -> U. output: U -> V.

    h_s, c_s = LSTM(E x_s, h_{s-1}, c_{s-1})        s over the source, first to last token or last to first
    h'_0, c'_0 = h_S, c_S                           of every layer
    h'_t, c'_t = LSTM'(E' y_{t-1}, h'_{t-1}, c'_{t-1})
    p(y_t | y_<t, x) = softmax(W_o h'_t + b_o)      h'_t of the last layer (1409.3215, equation 1)
    """

    memory_class = State

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__(config)
        U = config.units
        layers, dropout = config.decoder_layers, between(config, config.decoder_layers)
        self.encoder = nn.LSTM(config.d_model, U, layers, batch_first=True, dropout=dropout)
        self.decoder = nn.LSTM(config.d_model, U, layers, batch_first=True, dropout=dropout)
        initialize_recurrence(self.encoder)
        initialize_recurrence(self.decoder)
        self.output = self.make_output(U)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> State:
        lengths = self.check_source(input_ids, source_mask)
        if self.config.reverse_source:
            input_ids = reverse_sources(input_ids, lengths)
        embedded = self.dropout(self.source_embedding(input_ids))  # [B, S, E]
        _, (hidden, cell) = self.encoder(pack(embedded, lengths))  # [L, B, U] each
        return State(hidden.transpose(0, 1), cell.transpose(0, 1))

    def start(self, memory: State) -> State:
        return memory

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, None]:
        logits, state = self._decode(token[:, None], state)
        return logits[:, 0], state, None

    def forward(self, input_ids: Tensor, source_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        state = self.start(self.encode(input_ids, source_mask))
        return self._decode(decoder_input_ids, state)[0]

    def _decode(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens [R, T] -> logits [R, T, V] and the state after the last of them."""
        embedded = self.dropout(self.target_embedding(tokens))  # [R, T, E]
        first = (state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous())
        features, (hidden, cell) = self.decoder(embedded, first)  # [R, T, U], [L, R, U], [L, R, U]
        return self.output(self.dropout(features)), State(hidden.transpose(0, 1), cell.transpose(0, 1))
