"""mBART (2001.08210) and mBART-50 (2008.00401): BART with pre-norm blocks and a final norm on both sides."""

from __future__ import annotations

from typing import Any

from . import Family
from ._bart_like import transformer
from .bart import OFFSET

MODEL_TYPES = ("mbart",)


def describe(model: Any) -> Family:
    positions = model.config.max_position_embeddings
    return Family("mbart", transformer(model, norm_first=True, offset=OFFSET), positions, positions)
