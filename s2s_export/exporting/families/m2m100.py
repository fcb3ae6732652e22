"""M2M100 (2010.11125) and NLLB (2207.04672): pre-norm, sinusoidal positions that padding tokens do not advance."""

from __future__ import annotations

from typing import Any

from ..graphs.structure import PositionTable, Transformer
from . import Family
from ._bart_like import head, stack

MODEL_TYPES = ("m2m_100",)


def describe(model: Any) -> Family:
    config = model.config
    padding = config.pad_token_id

    def side(module: Any) -> Any:
        return stack(config, module, PositionTable(module.embed_positions.weights, padding + 1, padding))

    structure = Transformer(side(model.model.encoder), side(model.model.decoder), norm_first=True, head=head(model))
    positions = config.max_position_embeddings
    return Family("m2m100", structure, positions, positions)
