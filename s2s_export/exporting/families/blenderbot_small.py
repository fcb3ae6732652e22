"""Blenderbot small (2004.13637): post-norm blocks, learned positions.

The encoder's norm is of tokens with their positions, the decoder's of tokens before their positions are added.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..graphs.structure import Norm
from . import Family
from ._bart_like import transformer

MODEL_TYPES = ("blenderbot-small",)


def describe(model: Any) -> Family:
    positions = model.config.max_position_embeddings
    structure = transformer(model, norm_first=False)
    token_norm = Norm.of(model.model.decoder.layernorm_embedding)
    decoder = dataclasses.replace(structure.decoder, embedding_norm=None, token_norm=token_norm)
    return Family("blenderbot-small", dataclasses.replace(structure, decoder=decoder), positions, positions)
