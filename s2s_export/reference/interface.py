"""The interface of all reference models: encode, start, step, and a forward pass that gives the same as the steps.

    memory = model.encode(input_ids, source_mask)        # once per source
    state = model.start(memory)                          # one row per source
    state = select_rows(state, rows)                     # beams: repeat, reorder or drop rows
    logits, state, attention = model.step(token, state)  # one token per row

Memories and states are named tuples of tensors whose first dimension is the row, so that `select_rows` works for all.
Sources are padded at their end, and padding changes no result.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ..errors import InputError
from .config import ReferenceConfig

Rows = TypeVar("Rows", bound=tuple[Any, ...])


class EncoderDecoder(nn.Module):
    """Base of the reference models. Subclasses add layers and the four functions.

    memory_class: the named tuple that `encode` returns.
    """

    memory_class: type[tuple[Any, ...]]

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.config = config
        self.source_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.target_embedding = nn.Embedding(config.vocab_size, config.d_model)
        # Embeddings that are tied to the output layer must be small; those that a recurrence reads must not be.
        std = 1.0 if config.hidden_size is not None and not config.tie_embeddings else config.d_model**-0.5
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=std)
        self.dropout = nn.Dropout(config.dropout)

    def make_output(self, width: int) -> nn.Linear:
        """The layer from `width` features to V logits; with `tie_embeddings` its weight is the embeddings' [V, E]."""
        output = nn.Linear(width, self.config.vocab_size)
        if self.config.tie_embeddings:
            self.source_embedding.weight = self.target_embedding.weight
            output.weight = self.target_embedding.weight
        return output

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Any:
        """Encode the source: input_ids [B, S] int64, source_mask [B, S], true or 1 at tokens. Returns the memory."""
        raise NotImplementedError

    def start(self, memory: Any) -> Any:
        """The decoder's state before its first token, one row per source. It holds all that `step` needs."""
        raise NotImplementedError

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any, Tensor | None]:
        """Feed one token per row.

        token [R] int64. Returns logits [R, V] of the next token, the next state, and the cross-attention weights
        [R, L, H, S] of this step, or None when the model has no attention. The given state is left unchanged.
        """
        raise NotImplementedError

    def forward(self, input_ids: Tensor, source_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Teacher forcing: logits [B, T, V] after each token of decoder_input_ids [B, T], as `step` would give them."""
        raise NotImplementedError

    def check_source(self, input_ids: Tensor, source_mask: Tensor) -> Tensor:
        """The lengths [B] int64 of the sources. Raises InputError if one is empty, too long or padded elsewhere."""
        if input_ids.shape != source_mask.shape or input_ids.dim() != 2:
            raise InputError(
                f"input_ids has shape {list(input_ids.shape)} and source_mask {list(source_mask.shape)}, "
                "expected [B, S] for both; make one mask entry per token"
            )
        if input_ids.shape[1] > self.config.max_source_length:
            raise InputError(
                f"the source has {input_ids.shape[1]} tokens, expected at most {self.config.max_source_length}; "
                "split it, or train with a larger max_source_length"
            )
        mask = source_mask.bool()
        lengths = mask.sum(dim=1)
        prefix = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
        if bool((lengths == 0).any()):
            raise InputError("a source of the batch has no token, expected at least the end token; leave it out")
        if bool((mask != prefix).any()):
            raise InputError("source_mask has a gap, expected tokens first and padding at the end; pad on the right")
        return lengths


def select_rows(state: Rows, rows: Tensor) -> Rows:
    """The given rows [R'] of all tensors of a memory or state. Fields that are None stay None."""
    make: Any = type(state)  # a named tuple, which takes its fields as separate arguments
    return cast("Rows", make(*[None if value is None else value.index_select(0, rows) for value in state]))


def pack(sequence: Tensor, lengths: Tensor) -> PackedSequence:
    """sequence [B, S, E] without its padding, so that a recurrence ends at each row's own last token."""
    return pack_padded_sequence(sequence, lengths.cpu(), batch_first=True, enforce_sorted=False)


def reverse_sources(input_ids: Tensor, lengths: Tensor) -> Tensor:
    """input_ids [B, S] with the first `length` tokens of each row in reverse order; padding stays at the end."""
    position = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    mirrored = lengths[:, None] - 1 - position
    return input_ids.gather(1, torch.where(mirrored >= 0, mirrored, position))


def initialize_recurrence(layers: nn.Module) -> None:
    """Initialise an nn.LSTM, nn.GRU or cell so that its state neither vanishes nor explodes over long sources.

    Recurrent weights: orthogonal, gate by gate (1409.0473, section B.1). Input weights: Glorot's, gate by gate.
    Biases: 0, but 1 in the forget gate of an LSTM (Jozefowicz, Zaremba, Sutskever 2015).
    """
    n_gates = 4 if isinstance(layers, (nn.LSTM, nn.LSTMCell)) else 3
    for name, parameter in layers.named_parameters():
        gates = parameter.detach().chunk(n_gates)
        for number, gate in enumerate(gates):
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(gate)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(gate)
            else:
                nn.init.constant_(gate, 1.0 if n_gates == 4 and number == 1 and name.startswith("bias_ih") else 0.0)


def between(config: ReferenceConfig, layers: int) -> float:
    """Dropout between recurrent layers. It is 0 for one layer, for which torch would print a warning."""
    return config.dropout if layers > 1 else 0.0


def maxout(features: Tensor) -> Tensor:
    """[..., 2 E] -> [..., E]: the larger of each pair of neighbours (Goodfellow et al. 2013, arXiv 1302.4389)."""
    return features.unflatten(-1, (-1, 2)).amax(dim=-1)
