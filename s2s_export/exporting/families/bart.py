"""BART (1910.13461): post-norm, learned positions whose first two rows are unused, a norm after the embedding."""

from __future__ import annotations

from typing import Any

from . import Family
from ._bart_like import transformer

MODEL_TYPES = ("bart",)
OFFSET = 2  # rows of the position table before position 0, which fairseq reserved for special tokens


def describe(model: Any) -> Family:
    positions = model.config.max_position_embeddings
    return Family("bart", transformer(model, norm_first=False, offset=OFFSET), positions, positions)
