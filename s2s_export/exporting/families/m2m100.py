"""M2M100 (2010.11125) and NLLB (2207.04672): pre-norm, sinusoidal positions that padding tokens do not advance.

The positions are no weights: transformers computes a longer table where a sequence asks for one, past
`max_position_embeddings`. A graph has the table, so it is made longer at export: the rows are transformers' own, which
sines computed in the graph would not be to the last bit.
"""

from __future__ import annotations

from typing import Any

from ..graphs.structure import PositionTable, Transformer
from . import Family
from ._bart_like import head, stack

MODEL_TYPES = ("m2m_100",)


MIN_POSITIONS = 4096  # 16 MB at width 1024, stored once for both sides
TIMES = 4  # as many as config.json says


def stretch(model: Any, positions: int) -> None:
    """Give both sides a table of at least `positions` positions, and of enough beyond max_position_embeddings."""
    positions = max(positions, MIN_POSITIONS, TIMES * model.config.max_position_embeddings)
    for side in (model.model.encoder, model.model.decoder):
        table = side.embed_positions
        table.make_weights(table.padding_idx + 1 + positions, table.embedding_dim, table.padding_idx)


def describe(model: Any) -> Family:
    config = model.config
    padding = config.pad_token_id

    def side(module: Any) -> Any:
        return stack(config, module, PositionTable(module.embed_positions.weights, padding + 1, padding))

    structure = Transformer(side(model.model.encoder), side(model.model.decoder), norm_first=True, head=head(model))
    positions = len(model.model.decoder.embed_positions.weights) - padding - 1
    return Family("m2m100", structure, positions, positions)
