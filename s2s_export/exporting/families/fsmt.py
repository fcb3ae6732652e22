"""FSMT, fairseq's WMT'19 models (1907.06616): post-norm, sinusoidal positions, a vocabulary for each side.

The tables of positions are computed and not stored. As in fairseq, padding tokens inside a source do not advance the
position.
"""

from __future__ import annotations

from typing import Any

from ..graphs.structure import Linear, PositionTable, Stack, Transformer
from . import Family
from ._bart_like import block
from .m2m100 import MIN_POSITIONS, TIMES

MODEL_TYPES = ("fsmt",)


def stretch(model: Any, positions: int) -> None:
    """Give both sides a table of at least `positions` positions, as transformers does where a sequence asks for it."""
    positions = max(positions, MIN_POSITIONS, TIMES * model.config.max_position_embeddings)
    for side in (model.model.encoder, model.model.decoder):
        table = side.embed_positions
        table.make_weight(table.padding_idx + 1 + positions, table.embedding_dim, table.padding_idx)


def describe(model: Any) -> Family:
    config = model.config
    encoder, decoder = model.model.encoder, model.model.decoder
    structure = Transformer(
        _stack(config, encoder), _stack(config, decoder), norm_first=False, head=Linear.of(decoder.output_projection)
    )
    positions = len(decoder.embed_positions.weight) - decoder.padding_idx - 1
    return Family("fsmt", structure, positions, positions)


def _stack(config: Any, module: Any) -> Stack:
    padding = module.padding_idx
    return Stack(
        embedding=module.embed_tokens.weight,
        embedding_scale=float(module.embed_scale),
        positions=PositionTable(module.embed_positions.weight, padding + 1, padding, padding_row_moves=True),
        blocks=tuple(block(config, layer) for layer in module.layers),
    )
