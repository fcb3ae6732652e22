"""Marian and OPUS-MT (1804.00344): post-norm, sinusoidal positions, one or two vocabularies."""

from __future__ import annotations

from typing import Any

from . import Family
from ._bart_like import transformer

MODEL_TYPES = ("marian",)


def describe(model: Any) -> Family:
    positions = model.config.max_position_embeddings
    return Family("marian", transformer(model, norm_first=False), positions, positions)
